"""Numbers of a pair as `opd check` measures them, made up, and a forecast model to judge them."""

from __future__ import annotations

from opd.core.stats import Estimate
from opd.recipes.check.advice import RunFacts
from opd.recipes.check.forecast_model import Combination, ForecastModel, Mixture, Term
from opd.recipes.check.probe import DEPTHS
from opd.recipes.check.settings import RunSettings

RUN = RunSettings(
    steps=80,
    lr=1e-3,
    warmup=0,
    prompts_per_step=16,
    responses=4,
    max_new_tokens=100,
    weight_decay=0.01,
    lora_rank=0,
    parameters=1000,
    trained_parameters=1000,
    rollout_temperature=1.0,
    eval_temperature=0.7,
    eval_top_p=0.95,
)
NORMAL = ((0.005, -2.576), (0.05, -1.645), (0.25, -0.674), (0.5, 0.0),
          (0.75, 0.674), (0.95, 1.645), (0.995, 2.576))  # fmt: skip
MODEL = ForecastModel(
    Mixture(
        adopts=1.0,
        loses=-1.0,
        likely=0.8,
        terms=(Term("distance", -3.0, 3.0, 1.0, 0.5, 0.0, 2.0),),
    ),
    (
        Combination({"distance": 0.02}, {"distance": 0.4}, 0.0, NORMAL),
        Combination(
            {"distance": 0.05, "pilot": 0.03}, {"distance": 0.4, "pilot": 0.3}, 0.4, NORMAL
        ),
    ),
    "by hand",
)


def estimate(value, half=0.02):
    return Estimate(value, value - half, value + half, 100)


def make_features(student, teacher, distance, half=0.02, **more):
    features = {
        "student_accuracy": estimate(student, half),
        "teacher_accuracy": estimate(teacher, half),
        "gap": estimate(teacher - student, half),
        "weighted_teacher_accuracy": estimate(teacher, half),
        "distance": estimate(distance),
        "overlap_mass": estimate(0.9),
        "auroc": estimate(0.7),
        "tilt_gain": estimate(0.1),
    }
    if "continuation_gain" in more:
        more |= {f"gain@{depth:g}": more["continuation_gain"] for depth in DEPTHS}
    return features | {name: estimate(value) for name, value in more.items()}


def pilot(path, change, kl_drop, half=0.01):
    return {
        "pilot_steps": Estimate(4.0, 4.0, 4.0, 1),
        "pilot_path": Estimate(path, path, path, 1),
        "pilot_change": estimate(change, half),
        "pilot_kl_drop": estimate(kl_drop, half),
    }


FACTS = RunFacts(
    truncated=0.0,
    support_mass=1.0,
    max_new_tokens=100,
    cold_start={"coldstart": {}},
    prompts=64,
    most_prompts=192,
)
