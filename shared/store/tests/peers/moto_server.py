"""moto's S3 server with one bucket, a user that may do everything in it and one that may only read.

Prints one line of JSON with the endpoint and both key pairs, and ends with its standard input.
"""

import json
import logging
import sys
import urllib.request

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "miner"


def user(iam, name, actions):
    iam.create_user(UserName=name)
    resources = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resources}]}
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return [key["AccessKeyId"], key["SecretAccessKey"]]


def main():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    session = boto3.Session("founder", "founder", region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
    iam = session.client("iam", endpoint_url=endpoint)
    writer = user(iam, "writer", ["s3:*"])
    reader = user(iam, "reader", ["s3:GetObject", "s3:ListBucket"])
    # From here on every request must be signed by one of the two.
    plain = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", headers=plain)).read()
    print(json.dumps({"endpoint": endpoint, "bucket": BUCKET, "writer": writer, "reader": reader}), flush=True)
    sys.stdin.read()


main()
