"""Renders every template of shared/environments/data/chat_cases.jsonl again, as transformers does.

    .venv-reference/bin/python scripts/chat_cases.py [more.txt]

Its first line has the messages, every other one a template with what transformers made of it: `rendered` or `error`, and
`refused` where this project refuses what transformers renders. The lines of `more.txt`, JSON strings, are added as new
templates. What shows an address or the date does not belong there.
"""

import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

CASES = Path(__file__).parent.parent / "shared/environments/data/chat_cases.jsonl"
TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def outcome(template, messages):
    """What transformers makes of a template: as `apply_chat_template` calls it, without a tokenizer."""
    try:
        compiled = _compile_jinja_template(template)
        text = compiled.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **TOKENS)
        text.encode()
        return {"rendered": text}
    except Exception as error:  # whatever it is, validators cannot render the template
        return {"error": type(error).__name__}


def main():
    first, *lines = (json.loads(line) for line in CASES.read_text().split("\n") if line)
    known = {line["template"] for line in lines}
    for path in sys.argv[1:]:
        more = (json.loads(line) for line in Path(path).read_text().split("\n") if line)
        lines += [{"template": template} for template in more if template not in known]
    with CASES.open("w") as file:
        print(json.dumps(first), file=file)
        for line in lines:
            case = {"template": line["template"], **outcome(line["template"], first["messages"])}
            if line.get("refused") and "rendered" in case:
                case["refused"] = True
            print(json.dumps(case), file=file)


if __name__ == "__main__":
    main()
