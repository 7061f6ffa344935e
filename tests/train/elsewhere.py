"""A pretended GPU: tensors that say they lie on it, computed by the CPU, never mixed with others.

It changes what this process takes for devices, so it is used in processes of its own:

    python -m tests.train.elsewhere FOLDER

runs everything that a run can do on it and writes FOLDER/found.json: case -> "" or what went wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from steinvae import run as running
from steinvae import trainer as training
from steinvae.config import Config, EvaluationConfig, MethodConfig, ModelConfig, TrainerConfig
from steinvae.evaluation import evaluate_all
from steinvae.models import closed_form
from tests.train.image_trees import small_config, write_tree

NAME = "elsewhere"
aten = torch.ops.aten
CROSSES = (
    *(aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten._unsafe_index.Tensor),
    *(aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default),
)
"""Operations that take tensors of both devices; the result lies where their first one does."""


class OnDevice(Tensor):
    """A tensor of the pretended device around the one that is computed with."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Sees what makes tensors there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def is_there(tensor: Tensor) -> bool:
    """Sparse tensors cannot be wrapped and bear a mark."""
    return isinstance(tensor, OnDevice) or getattr(tensor, "there", False)


def tensors_of(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on what is inside. Errors: RuntimeError for tensors of two devices, as CUDA."""
    given = tensors_of((args, kwargs))
    there, here = [t for t in given if is_there(t)], [t for t in given if not is_there(t)]
    if there and func not in CROSSES and any(t.dim() > 0 for t in here):
        raise RuntimeError(f"tensors on two devices: {func}")
    if kwargs.get("device") is not None:
        lands = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        lands = is_there(args[0]) if func in CROSSES else bool(there)
    bare = tree_map(lambda t: t.inner if isinstance(t, OnDevice) else t, (args, kwargs))
    found = func(*bare[0], **bare[1])
    if not lands:
        return found
    known = {id(t.inner): t for t in there if isinstance(t, OnDevice)}
    wrapped = tree_map(lambda t: _wrap(t, known), found)
    dense = all(isinstance(t, OnDevice) for t in (*there, *tensors_of(wrapped)))
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there and dense else wrapped


def _wrap(value: Any, known: dict[int, OnDevice]) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.layout != torch.strided:
        value.there = True  # type: ignore[attr-defined]
        return value
    return known[id(value)] if id(value) in known else OnDevice(value)


def install() -> None:
    """Name the device, and have runs take it. Errors: ImportError where torch cannot pretend."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    torch._C._set_only_lift_cpu_tensors(True)  # numbers of Python's come there by a copy
    for module in (training, running):
        module.choose_device = lambda name: torch.device(NAME, 0)  # type: ignore[assignment]
    closed_form.NUMBERS_AT_ONCE[NAME] = 2**12  # several blocks


def whole(config: Config, estimators: str | None = None) -> None:
    """Train, validate, save, continue, test, and evaluate."""
    run_dir, _ = running.run(config)
    further = replace(config.trainer, max_steps=config.trainer.max_steps + 2)
    running.run(replace(config, resume="auto", trainer=further))
    options = {"images": 4, "samples": 20, "temperatures": 10, "chains": 2, "simulated": 3}
    options |= {"json": False, "estimators": estimators}
    evaluate_all(run_dir, running.read_config(run_dir), argparse.Namespace(**options))


def cases(folder: Path) -> dict[str, Callable[[], None]]:
    """One run each of what has tensors of its own."""
    base = Config(
        model=ModelConfig(codes=4, hidden=(16,)),
        method=MethodConfig(theta_particles=2, code_particles=4, importance_samples=2),
        trainer=TrainerConfig(
            max_steps=4,
            batch_size=16,
            log_every=2,
            validate_every=2,
            checkpoint_every=2,
            monitor_every=2,
            baseline="none",
        ),
        evaluation=EvaluationConfig(
            images=8, samples=20, validation_images=8, validation_samples=20
        ),
    )
    label = {"labels_per_class": 5}
    guess = {"guess_above": 0.5, "align_guesses": True, "adversarial_radius": 1.0}
    conv = {"network": "conv", "hidden": (4, 8)}
    documents = {"name": "bag_of_words", "root": str(write_documents(folder / "documents"))}
    deep = {"decoder": "deep_poisson", "layers": (6, 3), "gamma_shapes": (3.0, 0.1), "codes": 9}
    poisson = {"name": "stein_viwae", "log_q": "jac", "kernel_block": 3, "theta_particles": 1}
    changes: dict[str, dict[str, dict[str, Any]]] = {
        "stein_vae": {},
        "stein_viwae": {"method": {"name": "stein_viwae"}},
        "as printed": {"method": {"name": "stein_viwae", "weights": "paper"}},
        "moved codes": {
            "method": {"name": "stein_viwae", "move_codes": True},
            "model": {"encoder": "triangular"},
        },
        "planar flow": {"method": {"name": "planar_flow"}},
        "flow_elbo": {"method": {"name": "flow_elbo"}},
        "guesses": {"data": label, "model": conv, "method": guess},
        "m2": {"data": label, "method": {"name": "m2"}},
        "documents": {"data": documents},
        "deep documents": {
            "data": documents,
            "model": deep | {"encoder": "gaussian"},
            "method": poisson,
            "evaluation": {"proposal": "encoder"},
        },
    }
    made = {name: _changed(base, folder / name, sections) for name, sections in changes.items()}
    found = {name: (lambda own=config: whole(own)) for name, config in made.items()}
    images = small_config(write_tree(folder / "tree"), base.trainer)
    images = replace(images, run_dir=str(folder / "images"))
    return found | {"images": lambda: whole(images, "iw_g,units")}


def _changed(base: Config, run_dir: Path, sections: dict[str, dict[str, Any]]) -> Config:
    made = {name: replace(getattr(base, name), **values) for name, values in sections.items()}
    return replace(base, run_dir=str(run_dir), **made)


def write_documents(folder: Path) -> Path:
    """Forty lines of six words of thirty."""
    folder.mkdir()
    draws = torch.Generator().manual_seed(0)
    for name in ("train", "test"):
        words = [sorted(torch.randperm(30, generator=draws)[:6].tolist()) for _ in range(40)]
        lines = [" ".join(["1", *(f"{word + 1}:2" for word in line)]) for line in words]
        (folder / f"{name}.feat").write_text("\n".join(lines) + "\n")
    (folder / "vocab.txt").write_text("".join(f"word{number}\n" for number in range(30)))
    return folder


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    install()
    found = {}
    for name, case in cases(folder).items():
        with Elsewhere():
            try:
                case()
            except Exception:
                found[name] = traceback.format_exc()
            else:
                found[name] = ""
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
