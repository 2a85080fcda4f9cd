"""Makes smollm2_greedy.json: greedy text of the demo base, bare and with each example adapter, in f32.

    python make_smollm2_greedy.py PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf

Needs: pip install torch transformers peft gguf. The weights are dequantised from the GGUF file, q and k rows put back
in Hugging Face's order; adapters are applied by PEFT (f32, not merged). Each prompt is a user message in the model's
own chat template; 32 tokens are taken greedily, or fewer if the model ends its answer (the end token is the last id).

`margin_min` is the smallest gap between the best and the second-best logit on the way: an implementation whose logits
are off by more than half of it may rightly choose differently. `margins` has them all.
"""

import json
import pathlib
import sys

import peft
import torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[3]
sys.path.insert(0, str(ROOT / "crates" / "base-model" / "tests" / "golden"))
import reference  # noqa: E402

TOKENS = 32
PROMPTS = {
    None: [
        "What is the capital of France?",
        "Write one sentence about the sea.",
        "Explain what a loom does.",
        "What is 2 + 2?",
        "Name three colours of the rainbow.",
        "How do I boil an egg?",
        "Translate 'good morning' into Spanish.",
        "Why is the sky blue?",
        "Write a Python function that adds two numbers.",
        "Wer war Johann Wolfgang von Goethe?",
    ],
    "pirate": [
        "What is the capital of France?",
        "How are you today?",
        "What is the largest planet in the solar system?",
        "Tell me about your favourite food.",
        "How do I tie a knot?",
        "Who wrote Romeo and Juliet?",
        "What should I do when it rains?",
        "What is the boiling point of water?",
        "Give me advice for a job interview.",
        "Where can I buy fresh bread?",
    ],
    "support-triage": [
        "Classify and summarize: 'Order not delivered after 5 days'",
        "Classify and summarize: 'I was charged twice this month'",
        "Classify and summarize: 'The app crashes when I open settings'",
        "Classify and summarize: 'How do I change my email address?'",
        "Classify and summarize: 'My package arrived broken'",
        "Classify and summarize: 'I cannot log in since yesterday'",
        "Classify and summarize: 'Please cancel my subscription'",
        "Classify and summarize: 'The website is very slow today'",
        "Classify and summarize: 'I want a refund for order 1234'",
        "Classify and summarize: 'Great service, thank you!'",
    ],
    "sql-writer": [
        "yesterday's total amount from orders by channel",
        "number of customers per country",
        "the ten most expensive products",
        "average order amount per month in 2023",
        "all users who signed up last week",
        "names of employees in the sales department",
        "total revenue by region",
        "orders without a shipping date",
        "count of invoices by status",
        "the latest five payments",
    ],
}


@torch.no_grad()
def greedy(model, prompt_ids, eos_id):
    """Output ids and the margin of each choice."""
    ids, margins, cache = [], [], None
    step = torch.tensor([prompt_ids])
    while len(ids) < TOKENS and (not ids or ids[-1] != eos_id):
        out = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = torch.topk(out.logits[0, -1].float(), 2)
        ids.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 5))
        step = torch.tensor([[ids[-1]]])
    return ids, margins


def main():
    gguf = sys.argv[1]
    tokenizer = reference.tokenizer(gguf)
    cases = []
    for adapter, prompts in PROMPTS.items():
        model = reference.model(gguf)
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, str(ROOT / "examples" / "adapters" / adapter)).eval()
            kinds = {parameter.dtype for parameter in model.parameters()}
            assert kinds == {torch.float32}, kinds
        for prompt in prompts:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            prompt_ids = tokenizer.encode(text, add_special_tokens=False)
            ids, margins = greedy(model, prompt_ids, tokenizer.eos_token_id)
            answer = tokenizer.decode(ids, skip_special_tokens=True)
            cases.append({
                "adapter": adapter, "prompt": prompt, "rendered": text, "prompt_ids": prompt_ids,
                "output_ids": ids, "text": answer, "margin_min": min(margins), "margins": margins,
            })
            print(f"{adapter}: {prompt!r} -> {answer!r} (margin {min(margins)})", flush=True)
    record = {
        "model": pathlib.Path(gguf).name,
        "dtype": "float32",
        "tokens": TOKENS,
        "eos_id": tokenizer.eos_token_id,
        "versions": reference.versions(peft),
        "margin_min": min(case["margin_min"] for case in cases),
        "cases": cases,
    }
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({**record, "cases": []}, ensure_ascii=False)
    (HERE / "smollm2_greedy.json").write_text(head.removesuffix("]}") + "\n" + lines + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
