"""What a training run cannot have is one line: the argument, what was given, what was expected, and what to type; and no folder is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gen_fixtures import NETWORK, random_parquet, tiny_card, tiny_config, tiny_model, tiny_network
from typer.testing import CliRunner, Result

import sdesolve_gen as gen
from sdesolve_gen import cli
from sdesolve_gen.networks import UNet
from sdesolve_gen.processes import make_process


def train(tmp_path: Path, *sets: str, out: str = "run", extra: tuple[object, ...] = ()) -> Result:
    data = tmp_path / "train.parquet"
    if not data.exists():
        random_parquet(data)
    words = ["train", "--data", data, "--out", tmp_path / out, "--name", "x", "--steps", 1, "--batch", 4, "--precision", "fp32", "--device", "cpu", "--set", "warmup=1"]
    network = [] if any(word.startswith("network=") for word in sets) else ["--set", f"network={json.dumps(NETWORK)}"]
    return CliRunner().invoke(cli.app, [str(word) for word in [*words, *network, *(w for s in sets for w in ("--set", s)), *extra]])


def told(result: Result) -> str:
    """The one line that it is."""
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ") and result.output.count("\n") == 1, result.output
    assert "Traceback" not in result.output and "__init__" not in result.output
    return result.output


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["network.widht=3"], "network.widht=3: option of UNet 'widht' is not known; expected one of: blocks, channels, "),
        (["network.widht=3"], "Did you mean 'width'? network={} (--set network={}) takes its defaults."),
        (["network.width=9000"], "width=9000; expected an integer from 1 to 1024"),
        (["network_name=DiT"], "network.multipliers=[1, 2]: option of DiT"),
        (["network_name=LevelScore", "network={}"], "lacks network, network_options, process, levels, low, high of LevelScore; expected a value for each"),
        (["network_name=MLP", "network={}"], "network={} does not fit images (1, 8, 8)"),
        (["classes=20", "network_name=NCSNv2"], "classes=20: the network network_name='NCSNv2' knows no classes; expected network_name='UNet' (--set network"),
        (["classes=20", "network_name=NCSNv2"], "UNet, NCSNpp, DDPM, DiT, MLP, EDMUNet, or classes=0 (--set classes=0)"),
        (["network.classes=20"], "network.classes=20: expected a field of its own, classes=20 (--set classes=20)"),
        (["process_options.beta_mix=3"], "process_options of 'vp': 'beta_mix' is not known; expected one of: T, beta_max, beta_min. Did you mean 'beta_m"),
        (['process_options.beta_min="a"'], "process_options.beta_min='a'; expected a finite number, as in process_options.beta_min=1.0"),
        (["process_options.beta_min=-1"], "beta_min = -1 is out of range; expected 0 < beta_min < beta_max"),
        (["process=tabulated_vp"], "process_options of 'tabulated_vp' lack alphas_cumprod"),
        (["init=mnist"], "init='mnist' has another network than this run (width: 48 there, 8 here"),
        (["init=mnist"], "expected network.width=48 (--set network.width=48), "),
        (["init=mnist", "network_name=DiT", "network={}"], "(network_name: 'UNet' there, 'DiT' here); expected network_name='UNet' (--set network_name=UNet)"),
        (["init=mnistt"], "Did you mean 'mnist'?"),
        (["seed=99999999999999999999"], "seed=99999999999999999999; expected an integer below 2**63"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_do_not_fit(tmp_path: Path, sets: list[str], message: str) -> None:
    assert message in told(train(tmp_path, *sets))
    assert not (tmp_path / "run").exists()


def test_a_network_of_another_package_may_raise_what_it_likes(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    assert "network={} does not fit images (1, 8, 8): Invalid channel dimensions" in told(train(tmp_path, "network_name=DiffusersUNet2D", "network={}"))


def test_what_needs_no_data_is_told_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdesolve_gen.training.loop.read_data", lambda *a: pytest.fail("the data were read"))
    for change in ({"network": {"depth": 3}}, {"network_name": "NCSNv2", "classes": 3}, {"process_options": {"beta": 3}}, {"out": str(tmp_path / "train.parquet")}):
        random_parquet(tmp_path / "train.parquet")
        with pytest.raises(ValueError, match=r"network.depth|knows no classes|'beta' is not known|is a file"):
            gen.train(tiny_config(tmp_path / "train.parquet", **{"out": tmp_path / "run", **change}), progress=False)  # type: ignore[arg-type]


def test_an_init_of_other_images_or_classes(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "grey")
    options = {"channels": 3, **NETWORK}
    gen.Model(UNet(**options), tiny_card(shape=[3, 8, 8], network_options=options)).save(tmp_path / "colour")
    assert train(tmp_path, f"init={tmp_path / 'grey'}", out="fine").exit_code == 0
    said = told(train(tmp_path, f"init={tmp_path / 'colour'}"))
    assert "(channels: 3 there, 1 here); expected data of its shape, (3, 8, 8), or init=''" in said
    said = told(train(tmp_path, f"init={tmp_path / 'grey'}", "classes=20"))
    assert "(classes: 0 there, 20 here); expected classes=0 (--set classes=0), or init=''" in said
    assert not (tmp_path / "run").exists()


def test_options_by_default_are_no_difference(tmp_path: Path) -> None:
    """A card may say what another leaves to the defaults."""
    gen.Model(tiny_network(), tiny_card(network_options={"channels": 1, "classes": 0, **NETWORK})).save(tmp_path / "said")
    said = told(train(tmp_path, f"init={tmp_path / 'said'}", "network.blocks=2"))
    assert "(blocks: 1 there, 2 here); expected network.blocks=1 (--set network.blocks=1)" in said


@pytest.mark.parametrize("out", ["train.parquet", "train.parquet/run"])
def test_a_folder_that_is_a_file(tmp_path: Path, out: str) -> None:
    said = told(train(tmp_path, out=out))
    assert "train.parquet is a file; expected the name of a folder, as in out='runs/mine' (--out runs/mine)" in said
    assert (tmp_path / "train.parquet").is_file()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    said = told(train(tmp_path, extra=("--config", _file(tmp_path, "seed: 1")), out="../" * 20 + "proc/x"))
    assert "the folder cannot be made" in said and "--out runs/mine" in said


def _file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "run.yaml").write_bytes(text.encode("latin-1"))
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch: [4\nseed: b: c\n", "is not YAML: expected ',' or ']', but got ':' (line 2, column 5); expected a field a line, as in learning_rate: 2.0e-4"),
        ("seed: 1\n\tclip: 3\n", "is not YAML: found character '\\t' that cannot start any token (line 2, column 1)"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML: could not determine a constructor for the tag"),
        ("seed: \xff\xfe", "is not YAML: 'utf-8' codec can't decode byte 0xff in position 6"),
        ("seed: \x01", "is not YAML: unacceptable character"),
        ("seed: 2020-99-99", "is not YAML: month must be in 1..12"),
        ("seed: " + 3000 * "[", "is not YAML: "),
        ("{[1]: 2}", "is not YAML: found unhashable key (line 1, column 2)"),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_damaged_file_of_fields(tmp_path: Path, text: str, message: str) -> None:
    said = told(train(tmp_path, extra=("--config", _file(tmp_path, text))))
    assert message in said and said.startswith(f"error: --config {tmp_path / 'run.yaml'}")


def test_advice_is_what_may_be_typed(tmp_path: Path) -> None:
    assert train(tmp_path).exit_code == 0
    assert "or start anew with resume='never' (--resume never)" in told(train(tmp_path, "seed=5"))
    for checkpoint in (tmp_path / "run").glob("*.pt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    result = train(tmp_path)
    assert result.exit_code == 2 and "(--resume never)" in result.output
    assert train(tmp_path, "seed=5", extra=("--resume", "never")).exit_code == 0


def test_constants_of_a_process_are_named() -> None:
    for options, message in (
        ({"sigma": 1.0}, "process_options of 've': 'sigma' is not known; expected one of: T, sigma_max, sigma_min"),
        ({"sigma_min": True}, "process_options.sigma_min=True; expected a finite number"),
        ({"sigma_min": [1.0]}, r"process_options.sigma_min=\[1.0\]; expected a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            make_process("ve", options)
    assert make_process("ve", {"sigma_min": 1, "sigma_max": 2.0}).sigma_max == 2.0
