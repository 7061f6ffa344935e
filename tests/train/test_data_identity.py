"""Data whose numbers are the same and whose names are others are not the run's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steinvae import evaluate
from steinvae.data.count_files import Bags
from steinvae.data.documents import split
from steinvae.data.identity import differences, identity
from steinvae.run import SetupError, load_data, run
from steinvae.trainer import Trainer
from tests.train.image_trees import small_config, write_tree

FIRST = ("examples", "features", "mean", "pixels", "labels", "chosen", "lengths")


def rename(root: Path, before: str, after: str) -> None:
    for part in ("train", "val"):
        (root / part / before).rename(root / part / after)


def test_a_run_of_other_classes_is_not_continued_or_evaluated(tiny, tmp_path, capsys):
    """z0 in the place of n0: as many classes, and every number of one is another's."""
    root = write_tree(tmp_path / "images")
    config = replace(small_config(root, tiny().trainer), run_dir=str(tmp_path / "run"))
    run_dir, _ = run(config)
    reported = ["--run_dir", str(run_dir)]
    assert evaluate.main(reported) == 0
    assert "test split" not in capsys.readouterr().err
    rename(root, "n0", "z0")
    assert evaluate.main(reported) == 1
    assert "the data are not those of the run" in capsys.readouterr().err
    longer = replace(config.trainer, max_steps=10)
    with pytest.raises(SetupError, match=r"must keep the training data .*classes is"):
        run(replace(config, resume="auto", trainer=longer))
    rename(root, "z0", "n0")
    (root / "val" / "n1" / "0.png").unlink()
    assert evaluate.main(reported) == 0  # another test split may be meant
    assert "test.examples is 17, was 18" in capsys.readouterr().err
    result = json.loads((run_dir / "result.json").read_text())
    del result["data"]
    (run_dir / "result.json").write_text(json.dumps(result))
    assert evaluate.main(reported) == 0  # of a version that did not record it
    assert "test split" not in capsys.readouterr().err


def test_checkpoints_without_the_names_are_continued(tiny, digits, tmp_path):
    """Of their own data, and never of others."""
    trainer = Trainer(tiny(), digits, tmp_path)
    old = {name: each for name, each in trainer.state["data"].items() if name in FIRST}
    assert old == identity(digits.train)
    trainer.state["data"] = old
    trainer.save(trainer.tensors())
    trainer.settle()
    assert Trainer(tiny(), digits, tmp_path).resume()
    pixels = digits.train.pixels.clone()
    pixels[0, 0] += 1
    other = replace(digits, train=replace(digits.train, pixels=pixels))
    with pytest.raises(ValueError, match="pixels is"):
        Trainer(tiny(), other, tmp_path).resume()
    assert differences({"examples": 3}, {"examples": 3, "mean": 1}) == "mean is 1, was None"


def test_another_validation_or_test_split_is_other_data(digits):
    before = identity(digits.train, digits)
    labels = digits.test.labels.flip(0)
    assert not torch.equal(labels, digits.test.labels)
    other = replace(digits, test=replace(digits.test, labels=labels))
    assert differences(before, identity(other.train, other)).startswith("test.labels is")
    other = replace(digits, validation=digits.test)
    assert "validation.pixels is" in differences(before, identity(other.train, other))


def test_other_words_of_the_same_documents_are_other_data():
    start = np.array([0, 2, 4, 5])
    words, counts = np.array([0, 1, 1, 2, 2], np.int32), np.array([3, 1, 1, 3, 4], np.int32)

    def found(words, counts, vocabulary=("a", "b", "c")):
        bags = Bags(start, words, counts)
        data = split("bag_of_words", bags, bags, vocabulary, {})
        return identity(data.train, data)

    before = found(words, counts)
    assert "vocabulary is" in differences(before, found(words, counts, ("c", "b", "a")))
    assert "words is" in differences(before, found(words[[0, 2, 0, 3, 4]], counts))
    swapped = differences(before, found(words, counts[[1, 0, 3, 2, 4]]))
    assert swapped.startswith("counts is")
    assert "lengths" not in swapped


def test_a_pack_has_the_identity_of_its_tree(tmp_path, tiny):
    from steinvae.data.images.packing import pack

    root = write_tree(tmp_path / "images")
    config = small_config(root, tiny().trainer)
    pack(root, tmp_path / "pack", side=config.data.side)
    packed = replace(config, data=replace(config.data, root=str(tmp_path / "pack")))
    tree, shards = load_data(config), load_data(packed)
    assert identity(tree.train, tree) == identity(shards.train, shards)
