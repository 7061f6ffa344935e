"""Training on documents by the normal command: what the run folder says of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from steinvae.evaluate import main as evaluate
from steinvae.train import main

DOCUMENTS, WORDS = 120, 30
SMALL = [
    *("--model.codes", "2", "--model.hidden", "[8]", "--method.theta_particles", "1"),
    *(
        "--trainer.max_steps",
        "300",
        "--trainer.validate_every",
        "150",
        "--trainer.batch_size",
        "20",
    ),
    *("--optimizer.learning_rate", "0.02", "--optimizer.decay_steps", "300"),
    *("--evaluation.samples", "30", "--evaluation.validation_samples", "10"),
]


@pytest.fixture
def root(tmp_path):
    """Documents of two themes: words of one half of the vocabulary, or of the other."""
    stream = np.random.RandomState(0)
    for name in ("train", "test"):
        lines = []
        for _ in range(DOCUMENTS):
            theme = stream.randint(2) * WORDS // 2
            words = theme + stream.choice(WORDS // 2, 6, replace=False)
            lines.append(
                " ".join(["1", *(f"{w + 1}:{stream.randint(1, 4)}" for w in sorted(words))])
            )
        (tmp_path / f"{name}.feat").write_text("\n".join(lines) + "\n")
    (tmp_path / "vocab.txt").write_text("".join(f"word{number}\n" for number in range(WORDS)))
    return tmp_path


@pytest.mark.parametrize("method", ["vae", "stein_vae", "stein_viwae"])
def test_a_run_on_documents_reports_perplexities_beside_the_unigram(root, method):
    run_dir = root / "run"
    settings = ["--data.name", "bag_of_words", "--data.root", str(root), "--method.name", method]
    assert main([*settings, *SMALL, "--run_dir", str(run_dir), "--trainer.baseline", "none"]) == 0
    result = json.loads((run_dir / "result.json").read_text())
    found, unigram = result["perplexity"], result["perplexity_unigram"]
    assert result["skipped_lines"] == {}
    assert unigram["corpus"] == pytest.approx(WORDS, rel=0.1)
    assert found["corpus"] < 0.8 * unigram["corpus"]  # the theme alone halves it
    first, last = result["topics"]
    assert first["npmi"] >= last["npmi"]
    half = [int(word.removeprefix("word")) < WORDS // 2 for word in first["words"]]
    assert sum(half) in (0, 1, 9, 10)  # of ten words, all of one theme but for one
    report = (run_dir / "report.md").read_text()
    assert "## Perplexity" in report
    assert "NLL (nats/document)" in report
    assert evaluate([str(run_dir), "--estimators=iw_g", "--images=8", "--samples=20"]) == 0
    text = (run_dir / "evaluation.md").read_text()
    assert "NLL in nats a document" in text
    (finding,) = json.loads((run_dir / "evaluation.json").read_text())["findings"]
    assert finding["holds"] == "yes"
    assert "unigram, add one" in report
    assert " ".join(first["words"]) in report
    assert not (run_dir / "samples.png").exists()


def test_a_bad_line_ends_the_command_with_its_number(root, capsys):
    with (root / "train.feat").open("a") as file:
        file.write("1 31:2\n")
    settings = ["--data.name", "bag_of_words", "--data.root", str(root)]
    assert main([*settings, *SMALL, "--run_dir", str(root / "run")]) == 1
    assert "train.feat:121: a word outside the vocabulary" in capsys.readouterr().err
    skip = ["--data.bad_records", "skip", "--method.name", "vae"]
    assert main([*settings, *SMALL, *skip, "--run_dir", str(root / "run")]) == 0
    result = json.loads((root / "run" / "result.json").read_text())
    assert result["skipped_lines"] == {"a word outside the vocabulary": 1}


def test_a_deep_run_reports_topics_of_every_layer(root):
    run_dir = root / "run"
    deep = [
        *("--model.decoder", "deep_poisson", "--model.layers", "[4,3]", "--model.codes", "7"),
        *("--model.encoder", "gaussian", "--method.name", "stein_viwae", "--method.log_q", "jac"),
        *("--method.kernel_block", "2", "--evaluation.proposal", "encoder"),
    ]
    data = ["--data.name", "bag_of_words", "--data.root", str(root), "--trainer.baseline", "none"]
    settings = [item for item in SMALL if item != "2"]  # model.codes comes from `deep`
    settings.remove("--model.codes")
    assert main([*data, *settings, *deep, "--run_dir", str(run_dir)]) == 0
    result = json.loads((run_dir / "result.json").read_text())
    assert result["nll"]["estimator"] == "s_elbo(30)"
    assert result["perplexity"]["corpus"] < 0.8 * result["perplexity_unigram"]["corpus"]
    assert [topic["layer"] for topic in result["topics"]] == [1] * 4 + [2] * 3
    report = (run_dir / "report.md").read_text()
    assert "Layer 1: 4 units" in report
    assert "Layer 2: 3 units" in report
    assert "by its own density" in report
