"""From rollouts on disk: verl's dump (trainer.rollout_data_dir) becomes rollouts that opd replays.

    python replay_verl.py STUDENT dump/1.jsonl OUT

verl writes one JSON object a line with `input` (the rendered prompt), `output`, `gts`; vLLM's
offline outputs in that form work the same. The student scores each completion once, since the dump
has no top tokens. Then, with these settings in run.yaml:

    opd train run.yaml prompts.path=OUT/prompts.jsonl prompts.chat=null rollout.path=OUT rollout.n=1
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.data.prompts import load_prompts
from opd.run.rollouts import StepFile, encode
from opd.types import Rollout, Scores

K = 16  # loss.k


@torch.no_grad()
def main(student: str, dump: Path, out: Path) -> None:
    rows = [json.loads(line) for line in dump.read_text("utf-8").splitlines()]
    prompts = [{"prompt": row["input"], "answer": str(row.get("gts", ""))} for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    file = out / "prompts.jsonl"
    file.write_text("".join(json.dumps(p) + "\n" for p in prompts), "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student).eval()
    loaded = load_prompts(str(file), tokenizer, template=None, chat=None, max_tokens=10**6)
    batch = []
    for prompt in loaded.prompts:
        text = rows[prompt.index]["output"]
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        logits = model(torch.tensor([[*prompt.ids, *ids]])).logits[0, len(prompt.ids) - 1 : -1]
        logp = logits.float().log_softmax(-1)
        top = logp.topk(K)
        fields = {
            "logp": logp.gather(1, torch.tensor(ids)[:, None])[:, 0],
            "entropy": -(logp.exp() * logp).sum(1),
            "topk_ids": top.indices.int(),
            "topk_logp": top.values,
        }
        arrays = {name: value.numpy() for name, value in fields.items()}
        batch.append(Rollout(prompt, 0, np.array(ids, np.int32), finish="stop", **arrays))
    texts = [rows[r.prompt.index]["output"] for r in batch]
    step = StepFile(batch, [Scores() for _ in batch], texts, key={})
    (out / "step-1.parquet").write_bytes(encode(step))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
