"""TRL's DistillationTrainer with opd's diagnostics, run folder and report; the training is TRL's.

    trainer = DiagnosedTrainer(model=..., teacher_model=..., args=DistillationConfig(...),
                               train_dataset=..., run="runs/trl")
    trainer.train()
    trainer.close()

then `opd watch runs/trl` while it runs and `opd report runs/trl` at any time. Needs trl 1.16, one
process, text models. Diagnostics cost one more forward pass of both models per micro-batch.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from trl import DistillationTrainer

from opd import config
from opd.core import diagnostics
from opd.models.token_text import token_texts
from opd.run.folder import RunFolder
from opd.run.metric_names import POSITIONAL
from opd.types import Mean, Metrics, Prompt, Rollout, Scores


class DiagnosedTrainer(DistillationTrainer):
    """A DistillationTrainer that writes a run folder.

    Args:
        run: folder to write; must be new or empty.
        k: support size of overlap ratio and mass.
        positions: maximum number of completion positions diagnosed per micro-batch.
        rollouts: completions per logged step that the report can show token by token.
    """

    def __init__(
        self,
        *args,
        run: str | Path,
        k: int = 16,
        positions: int = 4096,
        rollouts: int = 8,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.k, self.positions, self.rollouts = k, positions, rollouts
        self.step_metrics: Metrics = {}
        self.shown: list[tuple[Rollout, Scores]] = []
        self.began = time.monotonic()
        self.tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        self.folder = RunFolder.create(run, self.settings(run))
        vocab = self.model.config.get_text_config().vocab_size
        self.folder.save_token_texts(lambda: token_texts(self.tokenizer, vocab))

    def settings(self, run: str | Path) -> dict:
        """TRL's configuration in opd's terms, for the report."""
        teacher = self.teacher_model.config.name_or_path or "teacher"
        return config.dump(
            config.parse(
                {
                    "student": {"model": self.model.config.name_or_path or "student"},
                    "teacher": {"model": teacher},
                    "prompts": {"path": "the train_dataset given to TRL"},
                    "rollout": {
                        "n": 1,
                        "max_new_tokens": self.args.max_completion_length,
                        "temperature": self.args.temperature,
                    },
                    "loss": {"support": "full", "divergence": "jsd"},
                    "diagnostics": {"positions": self.positions},
                    "optim": {"lr": self.args.learning_rate},
                    "train": {"steps": self.args.max_steps, "seed": self.args.seed},
                    # Nothing monitors this run: its report replays the rules over its metrics.
                    "alarms": {"action": "off"},
                    "output": {"dir": str(run)},
                }
            )
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            self.diagnose(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @torch.no_grad()
    def diagnose(self, inputs) -> None:
        """Add this micro-batch to the metrics of the step: exact sums and counts."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        sampled, valid = inputs["completion_ids"], inputs["completion_mask"].bool()
        student = self.log_probs(self.model, ids, mask, sampled.size(1))
        teacher = self.log_probs(self.teacher_model, ids, mask, sampled.size(1))
        lengths = valid.sum(1)
        position = torch.arange(sampled.size(1), device=sampled.device).expand_as(sampled)[valid]
        length = lengths[:, None].expand_as(sampled)[valid]
        chosen = self.choose(len(position))
        p, q = student[valid][chosen], teacher[valid][chosen]
        values = diagnostics.full_metrics(p, q, k=self.k, targets=sampled[valid][chosen])
        edges = diagnostics.position_edges(self.args.max_completion_length)
        binned = {name: values[name] for name in POSITIONAL}
        self.merge(diagnostics.overall(values))
        self.merge(diagnostics.by_bin(binned, position[chosen], length[chosen], edges=edges))
        rows = [row[:n].cpu().numpy() for row, n in zip(sampled, lengths, strict=True)]
        count, ends = len(rows), set(np.atleast_1d(self.tokenizer.eos_token_id).tolist())
        stopped = [len(row) > 0 and int(row[-1]) in ends for row in rows]
        self.merge(
            {
                "rollout/length": Mean(float(lengths.sum()), count),
                "rollout/truncated": Mean(float(count - sum(stopped)), count),
                "rollout/repetition": Mean(sum(diagnostics.repetition(row) for row in rows), count),
            }
        )
        for i in range(min(count, self.rollouts - len(self.shown))):
            prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()]
            self.keep(prompt, rows[i], stopped[i], student[i], teacher[i])

    def log_probs(self, model, ids, mask, width: int) -> torch.Tensor:
        """(batch, width, V) of the completion tokens, at temperature 1, dropout off."""
        was_training = model.training
        model.eval()
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
        model.train(was_training)
        return logits.float().log_softmax(-1)

    def choose(self, count: int) -> torch.Tensor:
        """Indices of the diagnosed positions; depends on seed and step alone."""
        key = np.random.SeedSequence([self.args.seed, self.state.global_step])
        order = np.random.Generator(np.random.Philox(key)).permutation(count)
        return torch.from_numpy(np.sort(order[: self.positions])).to(self.model.device)

    def merge(self, more: Metrics) -> None:
        for name, mean in more.items():
            self.step_metrics[name] = (
                self.step_metrics[name] + mean if name in self.step_metrics else mean
            )

    def keep(self, prompt, ids, stopped: bool, student, teacher) -> None:
        """Keep a completion with both models' scores, for the report's token view."""
        p, q = student[: len(ids)].cpu(), teacher[: len(ids)].cpu()
        index = torch.from_numpy(ids).long()[:, None]
        own, theirs = p.topk(self.k), q.topk(self.k)
        rollout = Rollout(
            prompt=Prompt(len(self.shown), tuple(prompt.tolist()), self.tokenizer.decode(prompt)),
            sample=0,
            ids=ids.astype(np.int32),
            logp=p.gather(1, index)[:, 0].numpy(),
            entropy=-(p.exp() * p).sum(1).numpy(),
            topk_ids=own.indices.int().numpy(),
            topk_logp=own.values.numpy(),
            finish="stop" if stopped else "length",
            version=self.state.global_step,
        )
        scores = Scores(
            sampled=q.gather(1, index)[:, 0].numpy(),
            topk_ids=theirs.indices.int().numpy(),
            topk_logp=theirs.values.numpy(),
        )
        self.shown.append((rollout, scores))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the metrics since the last log, beside what TRL logs."""
        super().log(logs, start_time)
        if "loss" not in logs or not self.step_metrics:
            return
        step, tokens = self.state.global_step, self.step_metrics["rollout/length"].total
        values = {name: mean.value for name, mean in self.step_metrics.items()}
        values |= {"diag/entropy_gap_mean": diagnostics.entropy_gap_mean(self.step_metrics).value}
        values |= {"train/loss": logs["loss"], "train/grad_norm": float(logs["grad_norm"])}
        values |= {"train/lr": logs["learning_rate"], "train/tokens": tokens}
        now = time.monotonic()
        seconds, self.began = now - self.began, now
        self.folder.log_metrics(step, values)
        self.folder.log_timings(
            step, {"time/step_s": seconds, "time/tokens_per_s": tokens / seconds}
        )
        texts = [self.tokenizer.decode(r.ids) for r, _ in self.shown]
        batch, scores = [r for r, _ in self.shown], [s for _, s in self.shown]
        key = self.folder.rollout_key(step, step - 1)
        self.folder.save_rollouts(step, batch, scores, key=key, texts=texts)
        self.step_metrics, self.shown = {}, []

    def close(self) -> None:
        """Release the run folder, so that its report knows the run is over."""
        self.folder.close()
