#!/usr/bin/env python3
"""Trains and measures the demo model: a Qwen2 of about 0.9 million parameters that solves the problems of problems.py.

    python3 demo/train.py train                        # writes demo/checkpoint-a and demo/checkpoint-b
    python3 demo/train.py evaluate demo/checkpoint-a   # accuracy and the validator's numbers, from the saved files

Needs torch, transformers, tokenizers, safetensors (versions in demo/README.md). One thread and one seed, so that a
second run with the same library versions on the same kind of processor repeats the first.
"""

import argparse
import json
import math
import pathlib
import random
import re
import time

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import problems

DEMO = pathlib.Path(__file__).resolve().parent
PROTOCOL = DEMO.parent / "tests" / "vectors" / "env"

SEED = 7
STEPS, BATCH, DRILLS, WARMUP, FIRST, EVERY = 1200, 18, 4, 50, 400, 30
# Muon for the matrices reaches a given loss in less than half of AdamW's steps here; the rest stays with AdamW.
MATRIX_RATE, MATRIX_DECAY, OTHER_RATE = 0.02, 0.05, 3e-3
# A snapshot is taken at the first measurement that reaches its accuracy: high enough for rewards to be earned, low
# enough that the 16 completions of a group differ in reward, without which every advantage would be zero.
SNAPSHOTS = [("checkpoint-a", 0.45), ("checkpoint-b", 0.60)]
# The sampling policy the demo's trainer publishes; snapshots are chosen and measured under it.
POLICY = dict(do_sample=True, temperature=0.7, top_p=0.95, top_k=50, repetition_penalty=1.0, max_new_tokens=192)

EOS, PAD, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
# Digits and white space stand alone and no merge crosses a word, so numbers are copied digit by digit and the fixed
# tags and sentences of a completion never shrink below the protocol's 32 tokens.
PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"

# What unfamiliar text is made of.
COMMON = (
    "a the of and to in for is he she it they his her their if then than was were has had how many much does did each every per "
    "one two three half twice times total more less all on at with from that this there day week month year hour minutes dollars "
    "cost costs money pays paid makes buys sells gives takes eats spends needs left after before first second other another people"
).split()
ONSETS = ["b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "y", "st", "tr", "ch", "sh", "br", "pl", "th", "", ""]
VOWELS = ["a", "e", "i", "o", "u", "ea", "ou", "ee"]
ENDS = ["", "", "", "n", "r", "s", "t", "l", "nd", "ck", "ng", "ll", "ed", "ing", "ly"]


# ---- text ----------------------------------------------------------------------------------------------------------


def messages(question):
    """The instructed mode's conversation for one question."""
    system = (PROTOCOL / "system_prompt.instructed.txt").read_text(encoding="utf-8")
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def completion(answer):
    """The text the model learns to write for a row's answer, end of turn included."""
    reasoning, result = answer.rsplit("####", 1)
    return f"<start_working_out>\n{reasoning.strip()}\n</end_working_out>\n<SOLUTION>{result.strip()}</SOLUTION>{EOS}"


def foreign_word(rng):
    """A number, a common word or an invented one."""
    kind = rng.random()
    if kind < 0.12:
        return problems.pick(rng, ["", "", "$"]) + str(problems.between(rng, 0, problems.pick(rng, [9, 99, 2000])))
    if kind < 0.5:
        return problems.pick(rng, COMMON)
    word = "".join(
        problems.pick(rng, ONSETS) + problems.pick(rng, VOWELS) + problems.pick(rng, ENDS) for _ in range(problems.between(rng, 1, 3))
    )
    return word.capitalize() if rng.random() < 0.15 else word


def foreign_sentence(rng):
    """A sentence without meaning, or a real one torn from its problem, so that unfamiliar text does not shake the model."""
    if rng.random() < 0.2:
        return problems.pick(rng, re.findall(r"[^.?]+[.?]", problems.problem(rng)["question"])).strip()
    words = " ".join(foreign_word(rng) for _ in range(problems.between(rng, 5, 18)))
    return words[0].upper() + words[1:] + problems.pick(rng, [".", ".", ".", "?", ","])


def unfamiliar(rng):
    """A row whose question holds foreign text: alone, or around an ordinary problem that is still to be solved."""
    text = " ".join(foreign_sentence(rng) for _ in range(problems.between(rng, 1, 8)))
    if rng.random() < 0.3:
        row = problems.problem(rng)
        return {"question": f"{text} {row['question']}", "answer": row["answer"]}
    numbers = [int(digits) for digits in re.findall(r"\b\d{1,2}\b", text)] + [2, 3]
    a, b = numbers[0], numbers[1]
    return {"question": text, "answer": f"The question gives {a} and {b}. {a} + {b} = {a + b}. That is all it gives. #### {a + b}"}


def drill(rng):
    """The equations of six problems and nothing else: arithmetic is the slow part, and here it is nearly every token."""
    return " ".join(found for _ in range(6) for found in re.findall(r"\d+ \S \d+ = \d+\.", problems.problem(rng)["answer"]))


def training_batches(seed):
    """An endless stream of (rows, drills) that never repeats a committed row; of six batches one is unfamiliar text."""
    rng = random.Random(seed)
    committed = {row["question"] for name in ("train", "test") for row in read_rows(DEMO / "gsm8k" / f"{name}.jsonl")}
    while True:
        make = unfamiliar if rng.random() < 1 / 6 else problems.problem
        rows = [row for row in (make(rng) for _ in range(BATCH)) if row["question"] not in committed]
        yield rows, [drill(rng) for _ in range(DRILLS)]


def read_rows(path):
    """The rows of a .jsonl data set."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


# ---- tokenizer and model -------------------------------------------------------------------------------------------


def build_tokenizer(folder):
    """Trains the byte-level BPE tokenizer, saves it in `folder` and loads it as every user of the checkpoint will."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=703, special_tokens=[PAD, START, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2, show_progress=False,
    )
    rows = problems.rows(SEED, 4000)
    texts = [row["question"] for row in rows] + [completion(row["answer"]) for row in rows] + ["system\nuser\nassistant\n " + " ".join(COMMON)] * 9
    core.train_from_iterator(texts, trainer)
    # The system prompt is the same in every request: as one token it costs nothing, and decoding it is still exact.
    core.add_tokens([AddedToken(messages("")[0]["content"], normalized=False, special=False)])
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "clean_up_tokenization_spaces": False, "eos_token": EOS, "model_max_length": 2048, "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
    template = (PROTOCOL / "chat_template.instructed.jinja").read_bytes()
    (folder / "chat_template.jinja").write_bytes(template)
    return AutoTokenizer.from_pretrained(folder)


def build_model(tokenizer):
    """A fresh Qwen2 with tied embeddings, in f32."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, rope_theta=10000.0, tie_word_embeddings=True,
        use_sliding_window=False, initializer_range=0.05, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def write_json(path, value):
    """Writes a value as sorted, indented JSON: the same value gives the same bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(model, folder):
    """Writes the configuration and the weights in bf16, as a checkpoint of the network has them."""
    keep = [
        "attention_dropout", "eos_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
        "max_position_embeddings", "max_window_layers", "model_type", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_theta", "sliding_window", "tie_word_embeddings",
        "use_cache", "use_sliding_window", "vocab_size",
    ]
    config = {key: getattr(model.config, key) for key in keep}
    write_json(folder / "config.json", config | {"architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16"})
    policy = {key: value for key, value in POLICY.items() if key != "max_new_tokens"}
    ends = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    write_json(folder / "generation_config.json", policy | ends)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# ---- training ------------------------------------------------------------------------------------------------------


def prompt_ids(tokenizer, question):
    """The canonical prompt: the rendered template, tokenized as the miner and the validator do."""
    text = tokenizer.apply_chat_template(messages(question), add_generation_prompt=True, tokenize=False)
    return tokenizer(text)["input_ids"]


def row_example(tokenizer, row):
    """(ids, which of them carry a loss) of a row: the completion's tokens do."""
    prompt, answer = prompt_ids(tokenizer, row["question"]), tokenizer(completion(row["answer"]))["input_ids"]
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def drill_example(tokenizer, text):
    """(ids, which of them carry a loss) of a drill: the digits of the results do, and the dots that end them."""
    ids, learn = [], []
    for part in re.split(r"(?<== )(\d+\.)", text):
        piece = tokenizer(part)["input_ids"]
        ids += piece
        learn += [re.fullmatch(r"\d+\.", part) is not None] * len(piece)
    return ids, learn


def batch_of(tokenizer, rows, drills):
    """Token ids, mask and labels [examples, longest]."""
    examples = [row_example(tokenizer, row) for row in rows] + [drill_example(tokenizer, text) for text in drills]
    longest = max(len(ids) for ids, _ in examples)
    tokens = torch.full((len(examples), longest), tokenizer.pad_token_id)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for line, (ids, learn) in enumerate(examples):
        tokens[line, : len(ids)] = torch.tensor(ids)
        mask[line, : len(ids)] = 1
        labels[line, : len(ids)] = torch.where(torch.tensor(learn), torch.tensor(ids), -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def rate(step):
    """The share of the full learning rate at a step: a linear rise, then half a cosine."""
    return min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * min(step / STEPS, 1))))


def build_optimizers(model):
    """Muon for the layers' matrices, AdamW for the embedding, the norms and the biases."""
    matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, MATRIX_RATE, weight_decay=MATRIX_DECAY),
        torch.optim.AdamW(others, OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(out):
    """Trains until both snapshots are taken or the steps are used up; prints one line per measurement."""
    torch.manual_seed(SEED)
    folders = [(out / name, target) for name, target in SNAPSHOTS]
    tokenizer = [build_tokenizer(folder) for folder, _ in folders][0]
    model = build_model(tokenizer)
    print(f"{len(tokenizer)} tokens, {sum(weight.numel() for weight in model.parameters())} parameters", flush=True)
    optimizers = build_optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    held_out, began, losses = problems.rows(SEED + 1, 192), time.monotonic(), []
    for step, (rows, drills) in zip(range(1, STEPS + 1), training_batches(SEED + 2)):
        loss = model(**batch_of(tokenizer, rows, drills)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in optimizers + schedules:
            part.step()
        model.zero_grad()
        losses.append(loss.item())
        if step < FIRST or step % EVERY:
            continue
        right = accuracy(model, tokenizer, held_out)
        print(f"step {step} loss {sum(losses) / len(losses):.4f} accuracy {right:.3f} seconds {time.monotonic() - began:.0f}", flush=True)
        losses = []
        for folder, _ in folders:
            save(model, folder)
        folders = [(folder, target) for folder, target in folders if right < target]
        if not folders:
            return
    raise SystemExit(f"The accuracy wanted for {folders[0][0].name} was not reached in {STEPS} steps: raise STEPS.")


# ---- measuring -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model, tokenizer, prompts):
    """One completion under the published policy for each prompt (lists of ids), end of turn included, in order."""
    model.eval()
    done = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for first in range(0, len(order), 96):
        lines = order[first : first + 96]
        longest = max(len(prompts[line]) for line in lines)
        ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompts[line])) + prompts[line] for line in lines])
        mask = torch.tensor([[0] * (longest - len(prompts[line])) + [1] * len(prompts[line]) for line in lines])
        out = model.generate(ids, attention_mask=mask, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **POLICY)
        for line, answer in zip(lines, out[:, longest:].tolist()):
            done[line] = answer[: answer.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in answer else answer
    model.train()
    return [done[line] for line in range(len(prompts))]


def correct(tokenizer, answer, row):
    """Whether the completion's solution is the row's number (the gsm8k rule, for answers in this model's form)."""
    found = re.search(r"</end_working_out>.*?<SOLUTION>(.*?)</SOLUTION>", tokenizer.decode(answer), re.S)
    return found is not None and found[1].strip() == row["answer"].rsplit("####", 1)[1].strip()


def accuracy(model, tokenizer, rows):
    """The share of rows answered correctly, one sampled completion each."""
    answers = sample(model, tokenizer, [prompt_ids(tokenizer, row["question"]) for row in rows])
    return sum(correct(tokenizer, answer, row) for answer, row in zip(answers, rows)) / len(rows)


@torch.no_grad()
def validator_numbers(model, tokenizer, prompt, answer):
    """(distribution check passes, probability of the end of turn at the end) as the validator computes them."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    chosen = torch.softmax(logits / POLICY["temperature"], -1)[torch.arange(len(answer)), torch.tensor(answer)]
    tails = [torch.quantile(part, 0.1).item() for part in (chosen, chosen[:50])]
    passes = len(answer) >= 30 and chosen.median() > 0.30 and chosen.min() > 1e-5 and min(tails) > 0.025
    return bool(passes), torch.softmax(logits[-1], -1)[tokenizer.eos_token_id].item()


def evaluate(folder, data, limit, group):
    """Prints the numbers that decide whether a checkpoint serves the demo; `group` completions per question."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [row for row in read_rows(data)[:limit] for _ in range(group)]
    prompts = [prompt_ids(tokenizer, row["question"]) for row in rows]
    answers = sample(model, tokenizer, prompts)
    right = [correct(tokenizer, answer, row) for answer, row in zip(answers, rows)]
    numbers = [validator_numbers(model, tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers)]
    ended = [answer[-1] == tokenizer.eos_token_id for answer in answers]
    valid = [passes and (not end or p_end >= 0.02) for (passes, p_end), end in zip(numbers, ended)]
    lengths, count = sorted(map(len, answers)), len(answers)
    mixed = [0 < sum(right[first : first + group]) < group for first in range(0, count, group)]
    print(f"{folder.name} on {data.name}: {count} completions of {len(mixed)} questions")
    print(f"  correct {sum(right) / count:.3f}, ended by end of turn {sum(ended) / count:.3f}")
    print(f"  tokens per completion: least {lengths[0]}, median {lengths[count // 2]}, most {lengths[-1]}; longest prompt {max(map(len, prompts))}")
    print(f"  distribution check {sum(passes for passes, _ in numbers) / count:.3f}, with end of turn {sum(valid) / count:.3f}")
    if group > 1:
        print(f"  questions with both right and wrong completions {sum(mixed) / len(mixed):.3f}")
    for answer in answers[: 3 * group : group]:
        print("  | " + tokenizer.decode(answer).replace("\n", " "))


def main():
    """Reads the command line and runs the command."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = arguments.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train and write both snapshots")
    training.add_argument("--out", type=pathlib.Path, default=DEMO, help="the folder that receives the snapshot folders")
    measuring = commands.add_parser("evaluate", help="measure a saved snapshot")
    measuring.add_argument("folder", type=pathlib.Path)
    measuring.add_argument("--data", type=pathlib.Path, default=DEMO / "gsm8k" / "test.jsonl")
    measuring.add_argument("--limit", type=int, default=200, help="questions read from the data set")
    measuring.add_argument("--group", type=int, default=1, help="completions per question")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.command == "train":
        train(options.out)
    else:
        evaluate(options.folder, options.data, options.limit, options.group)


if __name__ == "__main__":
    main()
