"""A run from its configuration to its folder: train, pick the best, test, report.

run_dir/ config.yaml metrics.{jsonl,csv} throughput.{jsonl,csv} checkpoints/ model.safetensors
         samples.png curves.png report.md result.json  baseline-vae/ (the same, beside it)
"""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from steinvae._atomic import write_text
from steinvae.checkpoint import lock_run_dir
from steinvae.config import GROUPED, IN_FILES, Config, MethodConfig
from steinvae.config_tree import from_dict, to_dict
from steinvae.data import CountDataset, Dataset, load, step_generator
from steinvae.data.left_out import lost_classes, skipped, warnings
from steinvae.density import Estimate, evenly_spaced, negative_log_likelihood
from steinvae.density.suite import normalised
from steinvae.device import prepare_process
from steinvae.folder import (
    check_own,
    check_same,
    choose_run_dir,
    held,
    mark_own,
    refuse_own,
    saying_how_to_go_on,
)
from steinvae.image_plan import advice
from steinvae.labels.results import label_results, write_chosen
from steinvae.logging import JSONL, MetricsWriter, Progress, read_metrics, tensorboard_writer
from steinvae.model_file import save_model
from steinvae.networks import Networks
from steinvae.nonfinite import NonFiniteError
from steinvae.own_networks import check_networks, classes
from steinvae.perplexity import text_results
from steinvae.plots import figure_module, save_curves, save_samples
from steinvae.report import commit, or_null, versions, write_report, write_result
from steinvae.signals import StopRequest
from steinvae.throughput import THROUGHPUT
from steinvae.topics import topic_results
from steinvae.trainer import Trainer

if TYPE_CHECKING:
    from steinvae.distributed import World

CONFIG, RESULT = "config.yaml", "result.json"
SAMPLES_DRAWN = 64
SEEN = 16
"""Test images that show whether pixels are bits."""


class SetupError(Exception):
    """The run cannot start: a setting, a data file or the run folder is not as it must be."""


def run(config: Config, world: World | None = None) -> tuple[Path, list[dict[str, Any]]]:
    """Train `config` and its baseline; returns the run folder and the results, baseline last.

    Of the processes of a `world` the leader writes and has results, the others have none.
    """
    prepare_process(config)
    beside = baseline(config)
    with ExitStack() as stack:
        try:
            leads = world is None or world.leads
            if config.trainer.tensorboard:
                tensorboard_writer()  # or it says now what is missing
            if leads:
                figure_module()
            run_dir = choose_run_dir(config) if leads else Path()
            if world is not None:
                world.check(config)
                run_dir = world.agree(run_dir)
            if leads:
                stack.enter_context(held(run_dir))
            against = advice(config, processes=1 if world is None else world.size)
            if against is not None:
                raise ValueError(against)
            dataset = load_data(config)
            for line in warnings(dataset) if leads else ():
                print(line, file=sys.stderr)
            trainer = prepare(config, dataset, run_dir, world)
            folder = run_dir / f"baseline-{config.trainer.baseline}"
            second = beside and prepare(beside, dataset, folder, world)
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            raise SetupError(str(error)) from error
        stop = stack.enter_context(StopRequest())
        if leads and config.resume == "auto" and not trainer.step:
            print(f"nothing to resume in {run_dir}: starts at step 0", file=sys.stderr)
        trainers = [each for each in (trainer, second) if each]
        if not leads:
            for each in trainers:
                follow(each, stop)
            return run_dir, []
        results: list[dict[str, Any]] = []
        for each in trainers:
            with saying_how_to_go_on(run_dir, each.run_dir):
                results.append(train(each, stop))
            results[0]["baselines"] = results[1:]
            write_report(run_dir, results[0], results[1:])
            write_result(run_dir, results[0])
    return run_dir, results


def prepare(config: Config, dataset: Dataset, run_dir: Path, world: World | None = None) -> Trainer:
    """A trainer in `run_dir`, continuing the run that is there if `resume` says so."""
    if config.resume == "auto":
        refuse_own(run_dir)
    if config.resume == "auto" and (run_dir / CONFIG).exists():
        check_same(read_config(run_dir), config, run_dir=run_dir)
    if world is None:
        trainer = Trainer(config, dataset, run_dir)
    else:
        from steinvae.distributed import ShardedTrainer  # half a second of DTensor

        trainer = ShardedTrainer(config, dataset, run_dir, world)
    if config.resume == "auto":
        go_on(trainer)
    if world is not None and not world.leads:
        return trainer
    if trainer.labelled:
        write_chosen(run_dir, trainer.labelled, dataset, config)
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_text(run_dir / CONFIG, text)
    return trainer


def prepare_with(networks: Networks, config: Config, dataset: Dataset) -> Trainer:
    """A trainer of networks that the caller has made, in the run folder of `config`.

    `resume` continues them as it does others, with the same settings alone; of `model` and `data`
    nothing else is looked at. Errors: TypeError and ValueError of `check_networks`, before
    anything is written.
    """
    prepare_process(config)
    run_dir = choose_run_dir(config)
    if config.resume == "auto" and (run_dir / CONFIG).exists():
        check_own(run_dir, classes(networks))
        check_same(read_config(run_dir), config, run_dir=run_dir)
    check_networks(networks, config, dataset)
    trainer = Trainer(config, dataset, run_dir, networks)
    if config.resume == "auto":
        go_on(trainer)
    run_dir.mkdir(parents=True, exist_ok=True)
    mark_own(run_dir, classes(networks))
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_text(run_dir / CONFIG, text)
    trainer.alone = True
    return trainer


def go_on(trainer: Trainer) -> None:
    """Continue from the checkpoint, if any; `ValueError` where it is beyond the last step, of other
    training data, or beside damaged metrics."""
    if trainer.resume():
        for name in (JSONL, f"{THROUGHPUT}.jsonl"):
            path = trainer.run_dir / name
            if path.exists():
                read_metrics(path)  # or it says now what is damaged
    last = trainer.config.trainer.max_steps
    if trainer.step > last:
        raise ValueError(f"run is at step {trainer.step}, beyond trainer.max_steps {last}")


def train(trainer: Trainer, stop: StopRequest) -> dict[str, Any]:
    """Train to the end of the budget and test; returns the content of result.json.

    The run of `prepare_with` is locked meanwhile and has its report.md written; others are part of
    a command that does both. Errors: InUseError where another process has the folder.
    """
    if not trainer.alone:
        return _train(trainer, stop)
    with lock_run_dir(trainer.run_dir):
        result = _train(trainer, stop)
    write_report(trainer.run_dir, result, [])
    return result


def _train(trainer: Trainer, stop: StopRequest) -> dict[str, Any]:
    label, total = trainer.config.method.name, trainer.config.trainer.max_steps
    with (
        MetricsWriter(
            trainer.run_dir, trainer.step or None, tensorboard=trainer.config.trainer.tensorboard
        ) as metrics,
        Progress(total, start=trainer.step, label=label) as progress,
    ):
        if trainer.step:
            progress.print(f"{label}: continues from the checkpoint of step {trainer.step}")
        trainer.fit(metrics, progress, stop)
        progress.print(f"{label}: evaluating on the test images")
    return finish(trainer)


def follow(trainer: Trainer, stop: StopRequest) -> None:
    """Train in a process that writes nothing."""
    total = trainer.config.trainer.max_steps
    with (
        TemporaryDirectory() as unread,
        MetricsWriter(Path(unread), None) as metrics,
        Progress(total, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, stop)
    trainer.close()


def finish(trainer: Trainer) -> dict[str, Any]:
    """Select the best parameters, test them, and write the model, the pictures and result.json."""
    trainer.close()
    run_dir, dataset, networks = trainer.run_dir, trainer.dataset, trainer.networks
    selected = trainer.select()
    save_model(run_dir, networks)
    if dataset.image_shape is not None:
        images = dataset.pictures(draw_samples(networks, SAMPLES_DRAWN, trainer.config.seed).cpu())
        save_samples(run_dir / "samples.png", images, dataset.image_shape)
    if (run_dir / JSONL).stat().st_size:
        save_curves(run_dir / "curves.png", run_dir / JSONL)
    result = describe(trainer, measure(trainer.config, dataset, networks), selected)
    if trainer.labelled:
        result["labels"] = label_results(networks, dataset, trainer.config, run_dir)
    write_result(run_dir, result)
    return result


def measure(config: Config, dataset: Dataset, networks: Networks) -> Estimate:
    """The reported NLL: `iw_g` on evenly spaced test images. Errors: NonFiniteError where it is NaN
    or infinite, of a model that has diverged."""
    settings = config.evaluation
    indices = evenly_spaced(len(dataset.test), settings.images)
    estimate = negative_log_likelihood(
        networks,
        dataset.test.batch(indices).to(networks.device),
        samples=settings.samples,
        seed=config.seed,
        fit_samples=settings.fit_samples,
        inflation=settings.inflation,
        proposal=settings.proposal,
    )
    if not (math.isfinite(estimate.value) and math.isfinite(estimate.single)):
        raise NonFiniteError(
            f"the test NLL by {estimate.estimator} is not finite: the model, which is saved, has "
            "diverged. Try a smaller optimizer.learning_rate"
        )
    return estimate


def describe(trainer: Trainer, estimate: Estimate, selected: int) -> dict[str, Any]:
    """The content of result.json."""
    config, count = trainer.config, trainer.networks.parameter_count()
    method, dataset = config.method, trainer.dataset
    own: dict[str, Any] = {"self_term": method.self_term} if method.is_stein else {}
    if method.name in GROUPED:
        own |= {"weights": method.weights, "importance_samples": method.importance_samples}
    if isinstance(dataset, CountDataset):
        own |= text_results(dataset, estimate.per_image)
        own["topics"] = topic_results(trainer.networks, dataset)
    else:
        seen = evenly_spaced(len(dataset.test), SEEN)
        own["skipped"], own["lost_classes"] = skipped(dataset), lost_classes(dataset)
        own["normalised"] = normalised(trainer.networks, dataset.test.batch(seen)).holds
    return {
        "method": method.name,
        **own,
        "data_set": trainer.dataset.name,
        "data": trainer.state["data"],
        "binarization": trainer.dataset.binarization,
        "steps": trainer.step,
        "selected_step": selected,
        "seconds": round(trainer.state["seconds"], 3),
        "cpu_seconds": round(trainer.state["cpu_seconds"], 3),
        "throughput": trainer.work.rates(trainer.step, trainer.state["seconds"]),
        "parameters": count["decoders"] + count["encoder"] + count.get("labels", 0),
        "nll": nll(estimate),
        "nll_single_decoder": estimate.single,
        "decoders": trainer.networks.theta.particles,
        "skipped_updates": trainer.state["skipped"],
        "rollbacks": trainer.state["rollbacks"],
        "seed": config.seed,
        "device": str(trainer.device),
        "versions": versions(),
        "commit": commit(),
    }


def nll(estimate: Estimate) -> dict[str, Any]:
    """An estimate as result.json has it; a standard error needs two images, else it is null."""
    return {
        "estimator": estimate.estimator,
        "value": estimate.value,
        "standard_error": or_null(estimate.standard_error),
        "images": estimate.images,
    }


def baseline(config: Config) -> Config | None:
    """The VAE that is trained beside the method; None where the method is the VAE itself.

    It has as many codes an image, and as many passes of its one decoder as one decoder of pairing
    full makes: the method makes those times its theta_particles.
    """
    name, method = config.trainer.baseline, config.method
    if name == "none" or name == method.name:
        return None
    codes = method.codes_per_image * (2 if method.move_codes else 1)
    plain = replace(method, name=name, code_particles=codes, **_OF_CODES_THAT_MOVE)
    return replace(config, method=plain)


_OF_CODES_THAT_MOVE: dict[str, Any] = {
    name: MethodConfig.__dataclass_fields__[name].default
    for name in (
        *("move_codes", "normalise_direction", "mass_rate"),
        *("temperature", "annealing_steps", "entropy_weight"),
    )
}
"""What a VAE is refused, as it is without."""


def load_data(config: Config) -> Dataset:
    """The data set of a configuration."""
    data = config.data
    if data.name == IN_FILES:
        from steinvae.data.images import load_images  # Pillow is not needed otherwise

        return load_images(
            data.root,
            side=data.side,
            crop=data.crop,
            bad_records=data.bad_records,
            workers=data.workers,
        )
    return load(data.name, data.root, binarization=data.binarization, bad_records=data.bad_records)


def read_config(run_dir: Path) -> Config:
    """The configuration a run folder was made with. Errors: ValueError naming the file where it is
    no YAML, or has a setting that there is not or a value that cannot be."""
    path = Path(run_dir) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"run_dir={run_dir} holds no {CONFIG}")
    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, yaml.YAMLError) as error:  # TypeError: text in place of a number
        fault = " ".join(str(error).split())  # a fault of YAML is told in several lines
        raise ValueError(f"{path} is no configuration of a run: {fault}") from error


@torch.no_grad()
def draw_samples(networks: Networks, count: int, seed: int) -> Tensor:
    """Mean images of codes from the prior, the decoders taking turns: (count, X) in [0, 1]."""
    generator = step_generator(seed, 0, "samples")
    codes = torch.randn(count, networks.encoder.codes, generator=generator)
    return networks.model.mean_images(networks.theta.leaves(), codes.to(networks.device))
