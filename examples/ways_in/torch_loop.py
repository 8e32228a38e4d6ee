"""From a plain PyTorch loop: sample, score, loss, step. Nothing of opd but its functions.

python torch_loop.py STUDENT TEACHER prompts.txt
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd import losses, metrics

K, STEPS, PROMPTS, NEW_TOKENS, LR = 16, 20, 8, 24, 5e-4


def distil(
    student: str, teacher: str, prompts: Sequence[str], steps: int = STEPS
) -> Iterator[dict[str, float]]:
    """Yields loss and entropy of every step; the trained model is the local `model`."""
    tokenizer = AutoTokenizer.from_pretrained(student, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(student)
    expert = AutoModelForCausalLM.from_pretrained(teacher).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    for step in range(steps):
        rows = [prompts[(step * PROMPTS + i) % len(prompts)] for i in range(PROMPTS)]
        batch = tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False)
        batch.pop("token_type_ids", None)
        width = batch["input_ids"].size(1)
        model.eval()
        ids = model.generate(
            **batch, do_sample=True, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id
        )
        model.train()
        sampled = ids[:, width:]
        ends = (sampled == tokenizer.eos_token_id).cumsum(1)
        valid = (ends - (sampled == tokenizer.eos_token_id).int() == 0).float()  # up to the first
        mask = torch.cat([batch["attention_mask"], valid.long()], 1)
        logits = model(ids, attention_mask=mask).logits[:, width - 1 : -1]
        with torch.no_grad():
            scores = expert(ids, attention_mask=mask).logits[:, width - 1 : -1]
            support = logits.topk(K, -1).indices
        p, q = (losses.renormalise(x.gather(-1, support)) for x in (logits, scores))
        loss = (losses.reverse_kl(p, q) * valid).sum() / valid.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        entropy = metrics.entropy(logits.detach().log_softmax(-1))
        yield {"loss": loss.item(), "entropy": float((entropy * valid).sum() / valid.sum())}


if __name__ == "__main__":
    for values in distil(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_text().splitlines()):
        print("  ".join(f"{name} {value:.3f}" for name, value in values.items()))
