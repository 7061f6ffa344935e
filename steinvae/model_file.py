"""model.safetensors: the parameters of a run that were tested, with a digest of their own."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from steinvae._atomic import replacing
from steinvae._manifest import digest_of_tensors
from steinvae.config import Config
from steinvae.device import choose_device, prepare_process
from steinvae.folder import going_on
from steinvae.networks import Networks, build_networks

MODEL = "model.safetensors"
DIGEST = "sha256"
"""Key of the file's metadata. A file without it is taken as it is."""


def save_model(run_dir: Path, networks: Networks) -> None:
    """Write the parameters of `networks`."""
    tensors = {name: item.cpu().contiguous() for name, item in networks.tensors().items()}
    with replacing(run_dir / MODEL) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors writes for the owner alone
        save_file(tensors, temporary, metadata={DIGEST: digest_of_tensors(tensors)})
        temporary.chmod(mode)


def load_model(run_dir: Path, config: Config, pixels: int, classes: int | None = None) -> Networks:
    """The networks of a finished run; `classes` as `build_networks` takes them.

    Errors: ValueError where `config` asks for other networks than the run has, or where the file is
    damaged.
    """
    path = Path(run_dir) / MODEL
    if not path.exists():
        raise FileNotFoundError(
            f"run_dir={run_dir} holds no {MODEL}: finish the run with {going_on(Path(run_dir))}"
        )
    prepare_process(config)
    device = choose_device(config.trainer.device)
    networks = build_networks(config, pixels, device, classes)
    tensors = read_model(path)
    try:
        networks.load(tensors)
    except ValueError as error:
        raise ValueError(f"{path} is not of the networks that were asked for: {error}") from error
    return networks


def read_model(path: Path) -> dict[str, Tensor]:
    """The tensors of a model.safetensors. Errors: ValueError where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST)
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if digest not in (None, digest_of_tensors(tensors)):
        raise ValueError(f"{path} is damaged: its numbers do not match its SHA-256")
    return tensors
