"""Settings in any combination are refused in a line, or train, and then resume bit for bit."""

from __future__ import annotations

import contextlib
import io
import re
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from steinvae import train
from steinvae.config import Config
from steinvae.logging import read_metrics
from steinvae.model_file import MODEL, read_model

NUMBERS: dict[str, list[Any]] = {
    "seed": [1],
    "model.codes": [1, 2, 8],
    "model.hidden": ["[16]", "[8,8,8]"],
    "model.noise_hidden": [4],
    "model.flow_blocks": [2],
    "model.planar_layers": [1],
    "model.input_dropout": [0.2],
    "method.code_particles": [1, 2, 6],
    "method.importance_samples": [1, 3],
    "method.theta_particles": [1, 2, 6],
    "method.label_particles": [3],
    "method.bandwidth": ["median", "median_squared", 3.0],
    "method.theta_bandwidth": ["median", 30.0],
    "method.bandwidth_factor": [4.0],
    "method.kernel_block": [1, 3],
    "method.guess_above": [0.2],
    "method.adversarial_radius": [0.5],
    "method.regression_steps": [2],
    "method.temperature": [3.0],
    "method.annealing_steps": [2],
    "method.mass_rate": [0.3],
    "method.mass_codes": [5],
    "method.entropy_weight": [0.5],
    "data.labels_per_class": [3],
    "data.label_fraction": [0.1],
    "trainer.batch_size": [1, 2, 31],
    "trainer.validate_every": [1, 3],
    "trainer.checkpoint_every": [1],
    "optimizer.learning_rate": [1e-1],
    "optimizer.decay_steps": [2],
    "optimizer.encoder_factor": [0.5],
}
ELSEWHERE = ("preset", "resume", "data.name", "data.crop", "trainer.device", "trainer.baseline")
REFUSED = re.compile(r"steinvae\.train: (trainer|data|model|method)\.\w+ (must|needs)")
SMALL = ["--trainer.device=cpu", "--trainer.baseline=none", "--trainer.log_every=1"]
SMALL += ["--evaluation.images=4", "--evaluation.samples=5", "--evaluation.validation_images=5"]


def choices(hint: Any) -> list[Any]:
    """The words of a field, and both positions of a switch."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = [each for part in parts if get_origin(part) is Literal for each in get_args(part)]
    return words + (["true", "false"] if bool in parts else [])


def described(section: type, prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Settings with some values, all of those that are words."""
    for name, hint in get_type_hints(section).items():
        if is_dataclass(hint):
            yield from described(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif prefix + name not in ELSEWHERE:
            found = NUMBERS.get(prefix + name) or choices(hint)
            if found:
                yield prefix + name, found


VALUES = dict(described(Config))
GIVEN = st.sets(st.sampled_from(sorted(VALUES)), max_size=7).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(VALUES[name]) for name in names})
)


def run(folder: Path, given: dict[str, Any], *more: str) -> tuple[int, str]:
    """The exit code of a training, and what it says to stderr."""
    said = io.StringIO()
    arguments = [*SMALL, f"--run_dir={folder}", *more]
    arguments += [f"--{name}={value}" for name, value in given.items()]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            return train.main(arguments), said.getvalue()
        except SystemExit as ending:
            return int(ending.code or 0), said.getvalue()


@given(name=st.sampled_from(VALUES["method.name"]), given=GIVEN)
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
def test_settings_train_and_resume_or_are_refused(tmp_path_factory, name, given):
    """Examples are those that train; what is refused on the way there must be so in a line."""
    folder = tmp_path_factory.mktemp("runs")
    given = {"method.name": name, **given}
    code, said = run(folder / "whole", given, "--trainer.max_steps=4")
    if code:
        last = said.strip().splitlines()[-1]
        assert "Traceback" not in said
        assert last.startswith("error: ") if code == 2 else REFUSED.match(last), said
        reject()
    assert run(folder / "parts", given, "--trainer.max_steps=2")[0] == 0
    assert run(folder / "parts", given, "--trainer.max_steps=4", "--resume=auto")[0] == 0
    metrics = [read_metrics(folder / each / "metrics.jsonl") for each in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    whole, parts = (read_model(folder / each / MODEL) for each in ("whole", "parts"))
    assert all(whole[key].equal(parts[key]) for key in whole)
