"""Where a config comes from: presets, YAML, flags, overrides, in this order."""

import dataclasses

import pytest
import torch
import yaml
from gen_fixtures import NETWORK, random_parquet
from typer.testing import CliRunner

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen import cli
from sdesolve_gen.networks import NETWORKS
from sdesolve_gen.processes import make_process
from sdesolve_gen.training import TrainConfig
from sdesolve_gen.training.losses import TIMES, denoising_loss
from sdesolve_gen.training.recipes import PRESETS, configured, names, read_config, write_config

NEEDED = {"data": "a.parquet", "out": "runs/a", "name": "a"}


def test_later_wins(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: ve\nname: from-file\nbatch: 32\nlearning_rate: 2e-4\nsteps: 5\nnetwork: {width: 16, fourier_scale: 1e-1}\n")
    config = configured(None, file, {"data": "b", "out": "c", "batch": 64}, {"network.width": 24, "process_options.sigma_max": 30.0})
    assert (config.process, config.name, config.data, config.batch, config.steps) == ("ve", "from-file", "b", 64, 5)
    assert config.learning_rate == 2e-4
    assert config.network == {"width": 24, "fourier_scale": 0.1}
    assert config.process_options == {"sigma_min": 0.02, "sigma_max": 30.0}
    assert configured("vp", file, {"data": "b", "out": "c"}, {}).process == "vp"  # a flag wins over the file's


def test_another_network_begins_with_its_own_defaults(tmp_path):
    for sets in ({"network_name": "NCSNpp", "network.width": 8}, {"network.width": 8, "network_name": "NCSNpp"}):
        assert configured(None, None, NEEDED, sets).network == {"width": 8}
    (tmp_path / "run.yaml").write_text("network_name: DiT\n")
    assert configured(None, tmp_path / "run.yaml", NEEDED, {}).network == {}
    assert configured(None, None, NEEDED, {"network_name": "UNet", "network.width": 8}).network == {**TrainConfig(**NEEDED).network, "width": 8}


def test_no_preset_is_the_defaults():
    assert configured(None, None, NEEDED, {}) == TrainConfig(**NEEDED)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(preset):
    """Its loss runs forwards and backwards on a small network of its options, and is of order 1 for a network that says nothing."""
    config = configured(preset, None, NEEDED, {"network.width": 8, "network.blocks": 1, "network.multipliers": [1], "batch": 256})
    torch.manual_seed(0)
    network = NETWORKS[config.network_name](channels=1, **config.network)
    process = make_process(config.process, config.process_options)
    score = sd.as_score(network, process, predicts=config.predicts, time=config.time)
    quantile = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    loss = denoising_loss(score, torch.rand(256, 1, 4, 4) - 0.5, TIMES[config.times](config, process, quantile), torch.randn(256, 1, 4, 4), config.weight)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert 0.3 < loss < (45 if config.weight == "g2" else 3)  # in nats: the difference of log_snr between the ends


def test_a_published_model_is_a_preset(tmp_path):
    """Its network, process and range are those of its card, and a smaller one of its kind trains."""
    assert {"ncsnpp_cifar10_ve", "ddpmpp_cifar10_subvp", "ncsnpp_ffhq1024_ve"} < set(names())
    assert "ncsnpp_cifar10_ve_discrete" not in names()
    config = configured("ncsnpp_cifar10_ve", None, NEEDED, {})
    card = gen.preset("ncsnpp_cifar10_ve")
    assert (config.network_name, config.network, config.data_range, config.time) == (card["network"], card["network_options"], [0.0, 1.0], "sigma")
    assert (config.learning_rate, config.ema, config.ema_warmup, config.flip, config.steps, config.batch) == (2e-4, 0.999, True, True, 1_300_000, 128)
    assert (configured("ncsnpp_ffhq1024_ve", None, NEEDED, {}).batch, configured("ddpmpp_cifar10_vp", None, NEEDED, {}).ema) == (8, 0.9999)
    small = {"network.width": 8, "network.multipliers": [1], "network.blocks": 1, "network.image_size": 8, "network.channels": 1, "network.attention": []}
    data = random_parquet(tmp_path / "train.parquet")
    flags = {"data": str(data), "out": str(tmp_path / "run"), "name": "a", "steps": 2, "batch": 4}
    model = gen.train(configured("ncsnpp_cifar10_ve", None, flags, {**small, "sample_every": 2}), progress=False, device="cpu")
    assert gen.load(tmp_path / "run").card == {**gen.load(tmp_path / "run").card, **{name: model.card[name] for name in ("network", "process", "data_range")}}
    assert model.data_range == (0.0, 1.0)


def test_a_config_written_is_the_config_read(tmp_path):
    config = configured("cifar10-smld", None, {**NEEDED, "data": ["a", "b"]}, {"seed": 2**40})
    write_config(tmp_path / "config.yaml", config)
    assert configured(None, tmp_path / "config.yaml", {}, {}) == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == dataclasses.asdict(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 3", r"run.yaml: field 'learning_rat' is not known.*Did you mean 'learning_rate'"),
        ("[1, 2]", "holds a list; expected fields of TrainConfig"),
        ("a: [", "run.yaml is not YAML"),
        ("a: !!python/object/apply:os.system ['true']", "run.yaml is not YAML"),
        ("preset: cifar10-vq", "preset 'cifar10-vq' is not known.*Did you mean 'cifar10-v"),
        ("batch: many", "batch='many'; expected an integer"),
        ("data: [1]", "expected a string or a list of strings"),
        ("steps: 5", "data, out, name: expected a value, as in --data ... --out ... --name ..."),
        ("", "holds a NoneType"),
    ],
)
def test_a_bad_file_is_told(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    needed = NEEDED if ":" in text and "steps" not in text and "data" not in text else {}
    with pytest.raises((ValueError, TypeError), match=message):
        configured(None, tmp_path / "run.yaml", {**({"out": "a", "name": "b"} if "data" in text else {}), **needed}, {})
    with pytest.raises(FileNotFoundError, match=r"--config .*none.yaml is not a file"):
        read_config(tmp_path / "none.yaml")


def test_train_from_a_file_and_again_from_the_one_it_wrote(tmp_path):
    """``--config OUT/config.yaml`` is the run."""
    data = random_parquet(tmp_path / "train.parquet")
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({**{"data": str(data), "out": str(tmp_path / "run"), "name": "mine", "network": NETWORK, "steps": 2, "batch": 4, "precision": "fp32"}})
    )
    first = CliRunner().invoke(cli.app, ["train", "--config", str(tmp_path / "run.yaml"), "--preset", "ve", "--device", "cpu"])
    assert first.exit_code == 0, first.output
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = CliRunner().invoke(cli.app, ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--resume", "never", "--device", "cpu"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert configured(None, tmp_path / "run" / "config.yaml", {}, {}).process == "ve"


def test_damaged_pictures_are_one_line_on_the_terminal(tmp_path):
    random_parquet(tmp_path / "train.parquet", 8)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(b"no")
    arguments = ["--data", tmp_path / "train.parquet", "--data", tmp_path / "a", "--out", tmp_path / "run", "--name", "x"]
    result = CliRunner().invoke(cli.app, ["train", *map(str, arguments)])
    assert result.exit_code == 2
    assert "some sources have labels" in result.output
    (tmp_path / "a" / "c.png").write_bytes(b"no")
    result = CliRunner().invoke(cli.app, ["train", "--data", str(tmp_path / "a"), "--out", str(tmp_path / "run"), "--name", "x"])
    assert result.exit_code == 2
    assert "holds no image that can be read (2 cannot: " in result.output
