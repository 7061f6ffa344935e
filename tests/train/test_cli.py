"""The command line: its surface is frozen, and its errors are one line that names the setting."""

from __future__ import annotations

import re

import pytest

from steinvae.cli import _preset_in, make_parser, parse_config
from steinvae.config import Config
from steinvae.presets import PRESETS, load_preset

SURFACE = {
    "config",
    "preset",
    "run_dir",
    "seed",
    "resume",
    "data.name",
    "data.root",
    "data.bad_records",
    "data.binarization",
    "model.codes",
    "model.hidden",
    "model.encoder",
    "model.decoder",
    "model.layers",
    "model.gamma_shapes",
    "model.flow_blocks",
    "model.planar_layers",
    "model.start",
    "model.output_scale",
    "method.name",
    "method.self_term",
    "method.code_particles",
    "method.importance_samples",
    "method.weights",
    "method.log_q",
    "method.theta_particles",
    "method.pairing",
    "method.bandwidth",
    "method.theta_bandwidth",
    "method.regression_steps",
    "method.code_step",
    "method.iwae_gradient",
    "method.shared_noise",
    "method.bandwidth_factor",
    "method.kernel_block",
    "method.kernel",
    "method.entropy_weight",
    "method.normalise_direction",
    "method.mass_rate",
    "method.mass_codes",
    "method.move_codes",
    "method.fixed_theta",
    "method.temperature",
    "method.annealing_steps",
    "optimizer.learning_rate",
    "optimizer.encoder_factor",
    "optimizer.final_fraction",
    "optimizer.decay_steps",
    "trainer.max_steps",
    "trainer.batch_size",
    "trainer.log_every",
    "trainer.tensorboard",
    "trainer.monitor_every",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.patience",
    "trainer.save_in_background",
    "trainer.on_nonfinite",
    "trainer.nonfinite_limit",
    "trainer.baseline",
    "trainer.device",
    "trainer.threads",
    "evaluation.images",
    "evaluation.samples",
    "evaluation.validation_images",
    "evaluation.validation_samples",
    "evaluation.proposal",
    "evaluation.fit_samples",
    "evaluation.inflation",
    "data.labels_per_class",
    "data.label_fraction",
    "data.split_seed",
    "method.zeta",
    "method.label_particles",
    "model.network",
    "model.activation",
    "model.noise_hidden",
    "model.input_dropout",
    "method.guess_above",
    "method.align_guesses",
    "method.adversarial_radius",
    "data.side",
    "data.crop",
    "data.workers",
    "model.stack",
    "model.label_kernels",
    "trainer.recompute",
    "trainer.precision",
    "trainer.compile",
    "trainer.cuda_graph",
}
"""Scripts depend on these names: adding one is a choice, renaming or losing one breaks users."""


def parse(*argv: str) -> Config:
    return parse_config("train", "Train.", argv)


def test_surface_is_frozen():
    parser = make_parser("train", "Train.", Config())
    options = {
        string.removeprefix("--")
        for action in parser._actions
        for string in action.option_strings
        if string.startswith("--")
    }
    sections = {name.split(".")[0] for name in SURFACE if "." in name}
    assert options - sections - {"help", "print_config"} == SURFACE


def test_defaults_are_the_digits():
    assert parse() == Config()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_preset_gives_the_defaults(preset):
    assert parse("--preset", preset) == load_preset(preset)


def test_precedence_is_preset_then_file_then_arguments(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: mnist_small\nseed: 4\nmodel:\n  codes: 7\n  hidden: [9, 8]\n")
    config = parse("--config", str(file), "--seed", "5", "--method.name=vae")
    assert (config.seed, config.model.codes, config.model.hidden) == (5, 7, (9, 8))
    assert config.trainer.max_steps == load_preset("mnist_small").trainer.max_steps
    assert config.method.name == "vae"


@pytest.mark.parametrize("joined", [False, True])
def test_the_command_line_wins_wherever_the_file_stands(joined, tmp_path):
    file, later = tmp_path / "run.yaml", tmp_path / "later.yaml"
    file.write_text("preset: mnist_small\nseed: 4\nmodel:\n  codes: 7\n")
    later.write_text("seed: 6\nmodel:\n  codes: 8\n")
    given = [f"--config={file}"] if joined else ["--config", str(file)]
    config = parse("--seed", "5", *given, "--method.name=vae")
    assert (config.seed, config.model.codes, config.method.name) == (5, 7, "vae")
    config = parse("--preset", "mnist_small", *given, "--seed=5", f"--config={later}")
    assert (config.seed, config.model.codes) == (5, 8)


def test_a_config_without_a_file_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse("--seed", "5", "--config")
    assert "config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("preset: mnist_smal\n", (), "preset must be one of"),
        ("preset: mnist_small\n", ("--preset", "mnist"), "of preset mnist_small, .* preset mnist:"),
        (
            "preset: mnist_small\n",
            ("--seed", "0", "--config", "SECOND"),
            "of preset mnist_small, .* no preset:",
        ),
    ],
)
def test_file_of_another_preset_is_refused(text, options, said, tmp_path, capsys):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(text)
    second.write_text("seed: 3\n")
    options = [str(second) if option == "SECOND" else option for option in options]
    with pytest.raises(SystemExit):
        parse(*options[:2], "--config", str(first), *options[2:])
    assert re.search(said, " ".join(capsys.readouterr().err.split()))


def test_help_names_the_presets(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", shown) for name in PRESETS)


def test_printed_configuration_can_be_read_back(tmp_path, capsys):
    arguments = ("--preset", "mnist", "--method.bandwidth", "0.5", "--run_dir", "x")
    with pytest.raises(SystemExit) as ended:
        parse(*arguments, "--print_config")
    assert ended.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse("--config", str(file)) == parse(*arguments)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--method.nme", "vae"], "method.nme"),
        (["--method.name", "vea"], "method.name"),
        (["--trainer.max_steps", "1.5"], "trainer.max_steps"),
        (["--trainer.max_steps", "many"], "trainer.max_steps"),
        (["--data.binarization", "dynamic", "--data.name", "binarized_mnist"], "data.binarization"),
        (["--method.code_particles", "1"], "method.code_particles"),
        (["--preset", "minst"], "preset"),
        (["--config", "no-such-file.yaml"], "no-such-file.yaml"),
        (["--resume", "yes"], "resume"),
        (["--method.zeta", "3"], "method.zeta"),
        (["--method.guess_above", "0.8"], "method.guess_above"),
        (["--method.align_guesses", "true"], "method.align_guesses"),
        (["--method.adversarial_radius", "1"], "method.adversarial_radius"),
        (["--model.input_dropout", "0.2"], "model.input_dropout"),
        (["--method.label_particles", "3"], "method.label_particles"),
        (["--method.name", "m2"], "data.labels_per_class"),
        (["--data.split_seed", "1"], "data.split_seed"),
        (["--data.label_fraction", "1.5"], "data.label_fraction"),
        (["--data.labels_per_class", "1", "--data.label_fraction", "0.5"], "data.label_fraction"),
        (["--data.name", "binarized_mnist", "--data.labels_per_class", "9"], "data.name"),
        (["--model.network", "conv", "--data.name", "20news"], "model.network"),
    ],
)
def test_wrong_argument_is_a_usage_error(argv, named, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) < 10


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["--model.hidden", "200,200"], "(write [200,200])"),
        (["--model.gamma_shapes", "1"], "(write [1])"),
        (["--method", "stein_viwae"], "(did you mean --method.name?)"),
        (["--data", "mnist"], "(did you mean --data.name?)"),
        (["--model.stack", "2"], "(--model.stack null leaves it out)"),
    ],
)
def test_what_was_meant_is_said(argv, meant, capsys):
    with pytest.raises(SystemExit):
        parse(*argv)
    assert capsys.readouterr().err.rstrip().endswith(meant)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("method:\n  name: vae\nseed: 1\nmethod:\n  pairing: strat\n", r"method \(line 4\) twice"),
        ("method:\n  name: vae\n  name: iwae\n", r"method\.name \(line 3\) twice"),
        ("method.name: vae\nmethod: {name: iwae}\n", r"method\.name \(line 2\) twice"),
        ("method: {name: vae}\nmethod.name: iwae\n", r"method\.name \(line 2\) twice"),
    ],
)
def test_a_setting_that_a_file_has_twice_is_refused(tmp_path, text, named):
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit, match=named):
        parse("--config", str(file))


@pytest.mark.parametrize(
    "text", ["a: &x {b: *x}\n", "a: &x {c: 1}\nd: {<<: *x, <<: *x}\n", "? [a]\n: b\n"]
)
def test_what_yaml_can_say_beside_does_not_end_the_search_for_a_preset(tmp_path, text):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    assert _preset_in(file) is None


@pytest.mark.parametrize("switch", [["--trainer.tensorboard"], ["--trainer.tensorboard", "true"]])
def test_a_switch_may_stand_alone(switch):
    assert parse(*switch, "--seed", "3").trainer.tensorboard
    assert parse("--seed", "3", *switch).trainer.tensorboard
    assert not parse(*switch, "--trainer.tensorboard", "false").trainer.tensorboard


@pytest.mark.parametrize("command", ["train", "sample RUN --output x.png", "reproduce table1"])
def test_a_missing_module_is_named_with_its_extra(command, fresh_python):
    """The package installed without the extra `train`, but for the parser."""
    code = f"""
import runpy, sys
sys.modules["safetensors"] = sys.modules["yaml"] = None
sys.argv = {command.split()}
runpy.run_module("steinvae." + sys.argv[0], run_name="__main__")
"""
    done = fresh_python(code)
    assert done.returncode == 1
    assert done.stderr.startswith(f"steinvae.{command.split()[0]}: ")
    assert "stein-kernels[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_parser_is_named_with_its_extra(fresh_python):
    """The package installed without the extra `train`."""
    code = """
import sys
sys.modules["jsonargparse"] = None
from steinvae.train import main
raise SystemExit(main([]))
"""
    done = fresh_python(code)
    assert done.returncode == 1
    assert done.stderr.startswith("steinvae.train: settings on a command line need jsonargparse")
    assert "stein-kernels[train]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["method:\n  nme: vae\n", "sead: 1\n", "seed: [1\n"])
def test_wrong_file_is_a_usage_error(text, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse("--config", str(file))
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_tags_in_a_file_build_no_objects(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(SystemExit) as ended:
        parse("--config", str(file))
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_every_setting_explains_itself():
    shown = make_parser("train", "Train.", Config()).format_help()
    for name in SURFACE - {"config"}:
        after = shown.split(f"\n  --{name} ", 1)[1].split("\n  --", 1)[0]
        assert len(after.split("(type:")[0].split()) > 4, name


@pytest.mark.parametrize("entry", ["train", "reproduce", "sample"])
def test_help_imports_no_torch(entry, fresh_python):
    code = f"""
import sys
from steinvae.{entry} import main
try:
    main(["--help"])
except SystemExit as ended:
    assert ended.code == 0
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
"""
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m steinvae." in done.stdout
