"""What E19 to E23 are made of: a switch in the prompt, return-to-go, gradients of positions."""

import json

import numpy as np
import pytest
import torch

from opd.core.batch import Batch
from opd.core.distributions import DenseDistribution
from opd.core.losses import reverse_kl
from opd.data.prompts import load_prompts
from opd.data.teacher_prompts import Rendering, make_teacher_prompts
from opd.types import Prompt, Rollout, Scores, Want
from opd_lab.commands import experiments_when_unnamed
from opd_lab.experiments import all_experiments, experiments_of, more_experiments
from opd_lab.experiments.switch import ARMS, TEACHER
from opd_lab.gradient_probe import measure_coherence, position_gradients
from opd_lab.more_checkpoints import PLAIN, SWITCHED
from opd_lab.probes import Model, load_task, sample_and_score
from opd_lab.return_to_go import AdvantageTeacher, advantages
from opd_lab.runs import Task
from opd_lab.worlds import detect_pattern
from opd_lab.zoo import tiny_qwen3


def test_an_unnamed_run_is_the_page_it_always_was():
    assert experiments_when_unnamed(False) == list(all_experiments())
    assert set(more_experiments()) <= set(experiments_of(quick=False))
    assert not set(more_experiments()) & set(experiments_of(quick=True))


def test_the_switch_chooses_the_pattern_and_moves_no_problem_over_the_split():
    rng = np.random.default_rng(0)
    plain, switched = (world.problems(40, 3, held_out=True) for world in (PLAIN, SWITCHED))
    assert [p.items for p in plain] == [p.items for p in switched]
    for i, problem in enumerate(switched):
        assert problem.text.startswith("hmm sum ") == bool(i % 2)
        text = SWITCHED.solve(problem, 1, rng)
        assert detect_pattern(text) == (2 if i % 2 else 1)
        assert text.rpartition("ANS")[2].strip() == plain[i].answer


def test_a_teacher_that_is_switched_alone_sees_the_word_before_the_students_text(tmp_path):
    path, tokenizer = tmp_path / "rows.jsonl", PLAIN.tokenizer()
    problems = PLAIN.problems(3, 1, held_out=False)
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [p.row() for p in problems]), encoding="utf-8"
    )
    prompts = load_prompts(str(path), tokenizer, template=None, chat={}, max_tokens=64).prompts
    (override,) = ARMS[TEACHER]
    key, _, view = override.partition("=")
    assert key == "teacher.prompt"
    seen = make_teacher_prompts(
        str(path), prompts, Rendering(tokenizer, None, {}), view, longest=64
    )
    assert [seen.texts[p.index] for p in prompts] == [f"hmm {problem.text}" for problem in problems]


def rollout(prompt, logp):
    """A rollout that has log-probs alone."""
    n = len(logp)
    values = np.array(logp, dtype=np.float32)
    return Rollout(
        prompt=Prompt(index=prompt, ids=(1,), text="", answer=None),
        sample=0,
        ids=np.ones(n, dtype=np.int32),
        logp=values,
        entropy=np.zeros(n, dtype=np.float32),
        topk_ids=np.zeros((n, 1), dtype=np.int32),
        topk_logp=np.zeros((n, 1), dtype=np.float32),
        finish="stop",
    )


# Rewards of the first group: 1, 3 and 2; their mean is 2 and their deviation root 2/3.
ROLLOUTS = [rollout(0, [-1.0, -4.0]), rollout(1, [-1.0]), rollout(0, [-3.0])]
SAMPLED = [np.array([0.0, -1.0]), np.array([-5.0]), np.array([-1.0])]
Z = np.sqrt(1.5)


def test_return_to_go_sums_the_group_scores_from_each_token_to_the_end():
    scored = advantages(ROLLOUTS, SAMPLED, to_go=False)
    assert scored[0] == pytest.approx([-Z, Z], abs=1e-5)
    assert scored[1] == pytest.approx([0.0])  # a group of one token
    assert scored[2] == pytest.approx([0.0], abs=1e-6)
    assert advantages(ROLLOUTS, SAMPLED, to_go=True)[0] == pytest.approx([0.0, Z], abs=1e-5)


class Inner:
    name, kinds = "inner", frozenset({"sampled"})

    def score(self, rollouts, want):
        return [Scores(sampled=q.astype(np.float32)) for q in SAMPLED]


@pytest.mark.parametrize("to_go", [False, True])
def test_the_score_of_a_token_is_its_log_prob_plus_the_advantage(to_go):
    teacher = AdvantageTeacher("t", frozenset({"sampled"}), Inner(), to_go)
    scores = teacher.score(ROLLOUTS, Want(sampled=True))
    expected = advantages(ROLLOUTS, SAMPLED, to_go=to_go)
    for r, s, a in zip(ROLLOUTS, scores, expected, strict=True):
        assert s.sampled - r.logp == pytest.approx(a, abs=1e-5)


@pytest.fixture
def pair(tmp_path):
    """Two random models of the plain world."""
    tokenizer = PLAIN.tokenizer()
    folders = [tmp_path / "student", tmp_path / "teacher"]
    for seed, folder in enumerate(folders):
        tiny_qwen3(tokenizer, seed=seed, width=32, layers=1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def test_gradients_of_positions_add_up_to_that_of_the_whole_loss(pair, tmp_path):
    task = Task(PLAIN, test=4)
    models = Model.load(pair[0]), Model.load(pair[1])
    prompts = load_task(task, models[0], 0, tmp_path).prompts
    with torch.no_grad():
        rollouts, scores = sample_and_score(models, prompts[:1], task.max_new_tokens, 1, seed=0)
    batch = Batch(rollouts, scores)
    gradients = torch.stack([*position_gradients(models, batch, 0)])
    assert len(gradients) == len(rollouts[0]) > 1

    student, teacher = models[0].lm, models[1].lm
    micro = batch.microbatch([0], student.device, k=1)
    hidden = student.hidden(micro.input_ids)[micro.rows, micro.cols]
    p = DenseDistribution(student.head.logits(hidden)).log_probs()
    q = DenseDistribution(teacher.head.logits(micro.teacher_hidden)).log_probs().detach()
    reverse_kl(p, q).sum().backward()
    whole = torch.cat([w.grad.flatten() for w in student.model.parameters() if w.grad is not None])
    assert torch.allclose(gradients.sum(0), whole, atol=1e-5)


def test_the_ratios_of_gradients_are_those_of_vectors(pair, tmp_path):
    coherence = measure_coherence(*pair, Task(PLAIN, test=4), seed=0, cache=tmp_path)
    assert 0 < coherence.batch < 1
    assert 0 < coherence.response <= 1
    assert coherence.against_chance > coherence.batch
    assert coherence.norm > 0
