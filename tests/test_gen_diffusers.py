"""Models of diffusers: the same process, the same network, the same images, and back from the folder that we write."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sdesolve as sd
import sdesolve_gen as gen

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

from gen_diffusers import saved, start, unet, walk  # noqa: E402
from test_no_sync import NoReads  # noqa: E402

from sdesolve_gen.adapters.schedules import ZERO, read_schedule  # noqa: E402

TABLES = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"num_train_timesteps": 50, "beta_end": 0.3},
    {"trained_betas": [0.01, 0.02, 0.5]},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "prediction_type": "sample"},
]


@pytest.mark.parametrize("config", TABLES, ids=str)
def test_the_process_has_exactly_their_levels(config: dict[str, Any]) -> None:
    scheduler = diffusers.DDPMScheduler(**config)
    theirs = scheduler.alphas_cumprod.double()
    schedule = read_schedule(scheduler.config)
    process = sd.TabulatedVP(**schedule.process_options)
    t = (torch.arange(len(theirs), dtype=torch.float64) + 1) / len(theirs)
    if config.get("rescale_betas_zero_snr"):
        assert float(theirs[-1]) == 0  # which no multistep method can do with: diffusers' have 2**-24, even where the level before is lower
        theirs[-1] = min(ZERO, float(theirs[-2]) / 4)
    assert torch.equal(torch.tensor(process.alphas_cumprod, dtype=torch.float64), theirs)
    assert torch.allclose(process.alpha(t) ** 2, theirs, rtol=1e-13)
    assert schedule.predicts == {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}[scheduler.config.prediction_type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "cubic"}, "beta_schedule 'cubic' is not known"),
        ({"beta_start": -1.0}, "expected 0 < beta < 1"),
        ({"beta_start": "0.1"}, "beta_start='0.1'; expected a finite number"),
        ({"num_train_timesteps": 10**9}, "expected an integer from 2 to 10000"),
        ({"trained_betas": [[0.1]]}, "expected 2 to 10000 numbers"),
        ({"trained_betas": ["a"]}, "are no numbers"),
        ({"trained_betas": [0.1, 1.5]}, "not all within"), ({"trained_betas": [0.5, 1e-9, 0.5]}, "fall within"),
        ({"prediction_type": "noise"}, "prediction_type 'noise' is not known"),
        ({"rescale_betas_zero_snr": True}, "expected \"v_prediction\" or \"sample\""),
        ({"_class_name": "VQDiffusionScheduler"}, "scheduler 'VQDiffusionScheduler' is not known"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}, "sigma_data"),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_schedule(config)


def test_a_config_without_its_name_is_told_by_its_keys() -> None:
    kinds = {"DDIMScheduler": "tabulated_vp", "ScoreSdeVeScheduler": "ve", "EDMEulerScheduler": "edm", "FlowMatchEulerDiscreteScheduler": "rectified_flow"}
    assert {name: read_schedule(getattr(diffusers, name)().config).process for name in kinds} == kinds
    assert read_schedule({"num_train_timesteps": 2000, "beta_min": 0.1, "beta_max": 20, "sampling_eps": 1e-3})[:4] == ("vp", {"beta_min": 0.1, "beta_max": 20.0}, "epsilon", 2000)


PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_folder_gives_the_images_of_ddim_and_dpm_solver(tmp_path: Path, prediction: str) -> None:
    """To 1e-4 of the largest value, which is 1 where the network predicts the data, and hundreds where an untrained one predicts noise."""
    pipe = saved(tmp_path, diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction))
    m, x = gen.load(tmp_path), start()
    assert (m.shape, m.data_range, m.card["time"]) == ((1, 8, 8), (-1.0, 1.0), "level")
    for scheduler, method in ((pipe.scheduler, "ddim"), (diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config), "dpmpp_2m")):
        scheduler.set_timesteps(10)
        theirs = walk(pipe.unet, scheduler, x)
        ts = [(int(t) + 1) / 1000 for t in scheduler.timesteps]
        ours = sd.solve(m.process.reverse(m.score), x, method, grid=ts, interval=(ts[0], ts[-1]), denoise=True)
        assert ours.nfe == 10
        assert float((ours.x - theirs).abs().max()) < 1e-4 * max(1.0, float(theirs.abs().max())) / 10


@pytest.mark.parametrize(
    ("scheduler", "process", "predicts", "time"),
    [
        ("DDPMScheduler", sd.TabulatedVP, "epsilon", "level"),
        ("ScoreSdeVeScheduler", sd.VESDE, "score", "sigma"),
        ("FlowMatchEulerDiscreteScheduler", sd.RectifiedFlow, "flow", "continuous"),
        ("EDMEulerScheduler", sd.EDM, "edm", "log_sigma/4"),
    ],
)
def test_a_saved_import_is_the_import(tmp_path: Path, scheduler: str, process: type[sd.Process], predicts: str, time: str) -> None:
    options = {"time_embedding_type": "fourier"} if "Sde" in scheduler else {}
    saved(tmp_path / "theirs", getattr(diffusers, scheduler)(), in_channels=3, out_channels=3, **options)
    m = gen.load(tmp_path / "theirs")
    assert isinstance(m.process, process)
    assert (m.card["predicts"], m.card["time"], m.card["training"]["imported"]) == (predicts, time, {"folder": "theirs"})
    back = gen.load(m.save(tmp_path / "ours"))
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == ["card.json", "model.safetensors"]
    assert back.process == m.process
    x = m.process.prior((2, 3, 8, 8), seed=0)
    torch.testing.assert_close(back.score(x, 0.5), m.score(x, 0.5))


def test_a_ve_network_says_the_score(tmp_path: Path) -> None:
    pipe = saved(tmp_path, diffusers.ScoreSdeVeScheduler(sigma_max=50.0), in_channels=3, out_channels=3, time_embedding_type="fourier")
    m, x = gen.load(tmp_path), 10 * start(channels=3)
    sigma = float(m.process.sigma(0.6))
    with torch.no_grad():
        torch.testing.assert_close(m.score(x, 0.6), pipe.unet(x, torch.full((2,), sigma)).sample)
    assert m.data_range == (0.0, 1.0) and m.process == sd.VESDE(0.01, 50.0)


def test_a_flow_is_theirs(tmp_path: Path) -> None:
    pipe = saved(tmp_path, diffusers.FlowMatchEulerDiscreteScheduler())
    m, x = gen.load(tmp_path), start()
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    with torch.no_grad():
        velocity = pipe.unet(x, (1000 * t).float()).sample
    torch.testing.assert_close(m.score.denoise(x, t), x - t.to(x)[:, None, None, None] * velocity)


def test_a_class_is_named(tmp_path: Path) -> None:
    pipe = saved(tmp_path, diffusers.DDIMScheduler(prediction_type="v_prediction"), num_class_embeds=5)
    m = gen.load(gen.load(tmp_path).save(tmp_path / "ours"))
    x = start()
    with torch.no_grad():
        torch.testing.assert_close(m.of_class(3).score.model_output(x, 0.5), pipe.unet(x, torch.tensor(499), torch.tensor([3, 3])).sample)
    assert float((m.of_class(3).sample(1, "ddim", steps=3, seed=0) - m.of_class(1).sample(1, "ddim", steps=3, seed=0)).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="labels are missing; expected integers from 0 to 4"):
        m.sample(1, "ddim", steps=3)
    for label in (5, -1, 1.0, True):
        with pytest.raises((ValueError, TypeError), match="expected integers from 0 to"):
            m.of_class(label)
    with pytest.raises(ValueError, match="knows no classes"):
        gen.load("mnist").of_class(3)


def test_older_layouts_and_weights(tmp_path: Path) -> None:
    """The first pipelines: files at the top, attention by its first names, weights of torch.save, in half precision."""
    saved(tmp_path, diffusers.DDPMScheduler())
    new = gen.load(tmp_path)
    old = tmp_path / "old"
    old.mkdir()
    tensors = {name.removeprefix("unet."): tensor.half() for name, tensor in new.network.state_dict().items()}
    for first, second in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        tensors = {name.replace(f".{second}.", f".{first}."): tensor for name, tensor in tensors.items()}
    torch.save(tensors, old / "diffusion_pytorch_model.bin")
    for source, target in (("model_index.json", "model_index.json"), ("unet/config.json", "config.json"), ("scheduler/scheduler_config.json", "scheduler_config.json")):
        (old / target).write_bytes((tmp_path / source).read_bytes())
    back = gen.load(old)
    x = start()
    torch.testing.assert_close(back.score(x, 0.5), new.score(x, 0.5), rtol=0.02, atol=0.02)


def test_a_learned_variance_is_left_out(tmp_path: Path) -> None:
    pipe = saved(tmp_path, diffusers.DDPMScheduler(variance_type="learned_range"), out_channels=2)
    x = start()
    with torch.no_grad():
        torch.testing.assert_close(gen.load(tmp_path).score.model_output(x, 0.5), pipe.unet(x, torch.tensor(499)).sample[:, :1])


# -- what is refused -----------------------------------------------------------------------------------------------------


def change(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**found, **changes}.items() if value is not ...}))


INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
REFUSED = {
    "code of its own": (INDEX, {"unet": ["my_module", "MyUNet"]}, "code of a model's own is not run"),
    "a path as library": (INDEX, {"unet": ["/etc", "UNet2DModel"]}, "code of a model's own is not run"),
    "a path upwards": (INDEX, {"scheduler": ["../evil", "DDPMScheduler"]}, "code of a model's own is not run"),
    "parts beyond": (INDEX, {"vae": ["diffusers", "AutoencoderKL"]}, "expected a UNet2DModel as unet, a scheduler, and no more"),
    "another network": (INDEX, {"unet": ["diffusers", "UNet2DConditionModel"]}, "expected a UNet2DModel as unet"),
    "no list": (INDEX, {"unet": {"a": 1}}, "expected a class of diffusers"),
    "another class": (UNET, {"_class_name": "Transformer2DModel"}, "expected UNet2DModel"),
    "vast channels": (UNET, {"block_out_channels": [10**9, 10**9]}, "block_out_channels=.* out of range"),
    "endless blocks": (UNET, {"layers_per_block": 10**9}, "layers_per_block"),
    "an unknown block": (UNET, {"down_block_types": ["os.system", "DownBlock2D"]}, "down_block_types"),
    "options that do not fit": (UNET, {"norm_num_groups": 7}, "does not describe a model that can be built"),
    "too few blocks": (UNET, {"down_block_types": ["DownBlock2D"]}, "does not describe a model that can be built"),
    "a vast image": (UNET, {"sample_size": 10**9}, "shape ="),
    "no size": (UNET, {"sample_size": None}, "shape ="),
    "text as size": (UNET, {"sample_size": "../../8"}, "shape ="),
    "other weights": (UNET, {"block_out_channels": [8, 8]}, "has besides unet"),
    "more weights": (UNET, {"layers_per_block": 2}, "it lacks unet"),
    "an unknown scheduler": (SCHEDULER, {"_class_name": "MyScheduler"}, "scheduler 'MyScheduler' is not known"),
    "a vast table": (SCHEDULER, {"num_train_timesteps": 10**12}, "expected an integer from 2"),
    "betas out of range": (SCHEDULER, {"beta_end": 7.0}, "expected 0 < beta < 1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    saved(folder, diffusers.DDPMScheduler())
    return folder


def copied(source: Path, target: Path) -> Path:
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_from_anywhere_gives_one_clear_error(pipeline: Path, tmp_path: Path, case: str) -> None:
    folder = copied(pipeline, tmp_path / "copy")
    file, changes, message = REFUSED[case]
    change(folder / file, **changes)
    with pytest.raises(gen.ModelFileError, match=message) as caught:
        gen.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("file", [INDEX, UNET, SCHEDULER, "unet/diffusion_pytorch_model.safetensors"])
def test_a_missing_or_cut_file_is_named(pipeline: Path, tmp_path: Path, file: str) -> None:
    folder = copied(pipeline, tmp_path / "copy")
    whole = (folder / file).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"[]"):
        (folder / file).write_bytes(content)
        with pytest.raises(gen.ModelFileError, match=file.rpartition("/")[2]):
            gen.load(folder)
    (folder / file).unlink()
    with pytest.raises(gen.ModelFileError, match=r"is not a file|has none of"):
        gen.load(folder)


def test_without_diffusers_the_way_to_it_is_told(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"sdesolve\[hub\]"):
        gen.load(pipeline)
    monkeypatch.delitem(sys.modules, "sdesolve_gen.adapters.scheduler", raising=False)
    monkeypatch.setitem(sys.modules, "sdesolve_gen.adapters.scheduler", None)
    with pytest.raises(ImportError, match=r"sdesolve\[hub\]"):
        gen.DiffusersScheduler  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Scheduler'"):
        gen.Scheduler  # noqa: B018


# -- our scheduler -------------------------------------------------------------------------------------------------------


def ours(config: Any, method: str, steps: int | None = 20, **options: Any) -> Any:
    scheduler = gen.DiffusersScheduler.from_config(config, method=method, **options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_our_scheduler_gives_the_images_of_ddim_and_dpm_solver(tmp_path: Path, prediction: str) -> None:
    """In diffusers' own pipelines, from the same start."""
    pipe = saved(tmp_path, diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction))
    for theirs, method in ((pipe.scheduler, "ddim"), (diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config), "dpmpp_2m")):
        theirs.set_timesteps(10)
        mine = ours(theirs.config, method)
        mine.set_timesteps(timesteps=theirs.timesteps.tolist())
        assert torch.equal(mine.timesteps, theirs.timesteps)
        a, b = walk(pipe.unet, theirs, start()), walk(pipe.unet, mine, start())
        assert float((a - b).abs().max()) < 1e-5 * max(1.0, float(a.abs().max()))
    images = []
    for scheduler in (pipe.scheduler, ours(pipe.scheduler.config, "ddim")):
        pipe.scheduler = scheduler
        images.append(torch.from_numpy(pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images))
    assert float((images[0] - images[1]).abs().max()) < 1e-4
    assert prediction == "epsilon" or float(((images[0] > 0) & (images[0] < 1)).float().mean()) > 0.5  # of an untrained one most are cut off


def test_a_pipeline_of_ddim_passes_what_it_passes(tmp_path: Path) -> None:
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np", use_clipped_model_output=True).images
    pipe.scheduler = gen.DiffusersScheduler.from_config(pipe.scheduler.config, method="ddim")
    assert pipe.scheduler.config.clip_sample is True
    for said in ({}, {"use_clipped_model_output": True}):
        mine = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np", **said).images
        assert float(abs(theirs - mine).max()) < 1e-4
    pipe.scheduler = gen.DiffusersScheduler.from_config(pipe.scheduler.config, method="ddim", clip_sample=False)
    with pytest.raises(ValueError, match="use_clipped_model_output=True, and nothing is clipped"):
        pipe(num_inference_steps=2, use_clipped_model_output=True)


def test_a_pipeline_with_it_is_saved_and_read(tmp_path: Path) -> None:
    pipe = saved(tmp_path / "theirs", diffusers.DDIMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"))
    pipe.scheduler = gen.DiffusersScheduler.from_config(pipe.scheduler.config, method="dpmpp_2m", method_options={"variant": "heun"})
    pipe.save_pretrained(tmp_path / "ours")
    back = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    back.set_progress_bar_config(disable=True)
    images = [p(generator=torch.Generator().manual_seed(0), num_inference_steps=6, output_type="np").images for p in (pipe, back)]
    assert (images[0] == images[1]).all() and back.scheduler.config.method_options == {"variant": "heun"}
    assert gen.load(tmp_path / "ours").process == gen.load(tmp_path / "theirs").process
    assert diffusers.DDIMScheduler.from_config(back.scheduler.config).config.beta_schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 1000])
def test_timesteps_are_those_of_ddim(spacing: str, steps: int) -> None:
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=0)
    theirs.set_timesteps(steps)
    assert ours(theirs.config, "ddim", steps).timesteps.tolist() == theirs.timesteps.tolist()


DPM_SOLVERS = (
    diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler, diffusers.DEISMultistepScheduler, diffusers.SASolverScheduler,
)  # fmt: skip


@pytest.mark.parametrize("theirs", DPM_SOLVERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("options", [{}, {"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}], ids=str)
def test_timesteps_are_those_of_dpm_solver(theirs: Any, options: dict[str, Any]) -> None:
    for scheduler, steps in itertools.product((theirs(**options), theirs(**options, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)), (2, 7, 20)):
        scheduler.set_timesteps(steps)
        assert ours(scheduler.config, "dpmpp_2m", steps).timesteps.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}, {"use_lu_lambdas": True}],
    ids=str,
)
def test_a_pipeline_gives_the_images_of_dpm_solver_at_the_same_number_of_steps(tmp_path: Path, options: dict[str, Any]) -> None:
    """With nothing said but the method; a scheduler that was saved keeps its nodes."""
    pipe = saved(tmp_path / "pipe", diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction", **options))
    mine = gen.DiffusersScheduler.from_config(pipe.scheduler.config, method="dpmpp_2m")
    mine.save_pretrained(tmp_path / "saved")
    images = []
    for scheduler in (pipe.scheduler, mine, gen.DiffusersScheduler.from_pretrained(tmp_path / "saved")):
        pipe.scheduler = scheduler
        images.append(torch.from_numpy(pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images))
    assert float((images[0] - images[1]).abs().max()) < 1e-4 and torch.equal(images[1], images[2])


FROM_DDPM = {"dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}), "unipc": (diffusers.UniPCMultistepScheduler, {"order": 2})}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("method", FROM_DDPM)
@pytest.mark.parametrize("saved_before", [True, False])
def test_what_a_config_carries_along_and_its_scheduler_ignores_is_ignored(tmp_path: Path, method: str, spacing: str, saved_before: bool) -> None:
    """DDPM clips by default, DPM-Solver never, and its config made of DDPM's has ``clip_sample=True`` all the same; a config that was never saved lacks its name."""
    kind, options = FROM_DDPM[method]
    ddpm = diffusers.DDPMScheduler(clip_sample=True, timestep_spacing=spacing, prediction_type="v_prediction")
    if saved_before:
        ddpm.save_pretrained(tmp_path)
        ddpm = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    theirs = kind.from_config(ddpm.config)
    assert theirs.config.clip_sample is True and theirs.config.get("_class_name") == (kind.__name__ if saved_before else None)
    for steps in (7, 10):
        theirs.set_timesteps(steps)
        mine = ours(theirs.config, method, steps, method_options=options)
        assert mine.config.clip_sample is False and mine.timesteps.tolist() == theirs.timesteps.tolist()
        a, b = walk(unet(), theirs, start()), walk(unet(), mine, start())
        assert float(a.abs().max()) > 1.5 and float((a - b).abs().max()) < 1e-4
    assert ours(theirs.config, method, clip_sample=True).config.clip_sample is True
    back = diffusers.DDIMScheduler.from_config({**kind.from_config(ddpm.config, solver_order=3).config, "_class_name": kind.__name__})
    back.set_timesteps(10)
    assert back.config.solver_order == 3 and ours({**back.config, "_class_name": "DDIMScheduler"}, "ddim", 10).timesteps.tolist() == back.timesteps.tolist()


def mended(theirs: Any) -> Any:
    """A DDIM of theirs that steps to the next of its timesteps, and not always to t - 1000 // N."""
    step = theirs.step

    def to_the_next(model_output: torch.Tensor, t: torch.Tensor, sample: torch.Tensor, **options: Any) -> Any:
        later = [int(other) for other in theirs.timesteps if other < t]
        number, theirs.num_inference_steps = theirs.num_inference_steps, 1
        theirs.register_to_config(num_train_timesteps=int(t) - later[0] if later else 1000)
        found = step(model_output, t, sample, **options)
        theirs.num_inference_steps = number
        theirs.register_to_config(num_train_timesteps=1000)
        return found

    theirs.step = to_the_next
    return theirs


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("spacing", "steps", "same"),
    [("leading", 10, True), ("leading", 7, True), ("trailing", 10, True), ("trailing", 7, False), ("linspace", 10, False), ("linspace", 7, False)],
)  # fmt: skip
def test_images_are_those_of_ddim_where_it_steps_to_its_own_timesteps(spacing: str, steps: int, same: bool, clip: bool) -> None:
    """From DDPM's default config, which clips.  Theirs always steps by 1000 // N; where the timesteps are other ones, it is told other levels than it stands at."""
    images = []
    for repaired in (False, True):
        theirs = diffusers.DDIMScheduler.from_config(diffusers.DDPMScheduler(timestep_spacing=spacing, clip_sample=clip, prediction_type="v_prediction").config)
        theirs.set_timesteps(steps)
        images.append(walk(unet(), mended(theirs) if repaired else theirs, start(), use_clipped_model_output=clip))
    mine = ours(theirs.config, "ddim", steps)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist()
    here = walk(unet(), mine, start())
    assert float((here - images[1]).abs().max()) < 1e-4
    assert (float((here - images[0]).abs().max()) < 1e-4) == same


CONFIG = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("heun", {}), ("rk45", {}), ("dpmpp_3s", {}), ("unipc", {"order": 3}), ("pc", {"snr": 0.1}), ("dpmpp_2m_sde", {}), ("ipndm", {}),
        ("edm", {"s_churn": 2.0, "s_tmax": 1.0}), ("restart", {"intervals": [(0.1, 1.0, 1, 2)]}),
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_method_walks_as_solve_does(method: str, options: dict[str, Any]) -> None:
    """Several calls a step, calls before the first one, memory, noise: the pipeline's loop ends where ``solve`` does, with its noise, at its price."""
    scheduler = ours(CONFIG, method, 8, method_options=options)
    network, told = unet(), []

    def call(x: torch.Tensor, t: torch.Tensor) -> Any:
        told.append(t.flatten()[:1].float())
        return network(x, t)

    x, seed = start(), int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))
    mine = walk(call, scheduler, x, generator=torch.Generator().manual_seed(3))
    process = sd.TabulatedVP(**read_schedule(CONFIG).process_options)
    score = sd.as_score(lambda x, t: call(x, t).sample, process, predicts="v", time=process.level)
    ts = [(level + 1) / 1000 for level in range(875, -1, -125)]
    before = len(told)
    sol = sd.solve(process.reverse(score), x, method, grid=ts, interval=(ts[0], ts[-1]), denoise=True, seed=seed, **options)
    assert len(told) == 2 * before and sol.nfe == before == len(scheduler.timesteps)
    assert float((torch.cat(told[:before]) - torch.cat(told[before:])).abs().max()) < 1e-3
    assert float((sol.x - mine).abs().max()) < 1e-4 * max(1.0, float(mine.abs().max()))


def test_the_noise_is_the_generator_s() -> None:
    network, x = unet(), start()
    scheduler = ours(CONFIG, "dpmpp_2m_sde", 6)
    runs = []
    for seed in (0, 0, 1):
        scheduler.set_timesteps(6)
        runs.append(walk(network, scheduler, x, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(runs[0], runs[1]) and float((runs[0] - runs[2]).abs().max()) > 0.1
    rows = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    scheduler.set_timesteps(6)
    both = walk(network, scheduler, x, generator=rows)
    scheduler.set_timesteps(6)
    torch.testing.assert_close(walk(network, scheduler, x[1:], generator=[torch.Generator().manual_seed(6)]), both[1:], rtol=1e-4, atol=1e-4)


def test_a_walk_reads_nothing_from_the_device() -> None:
    """After its first step, which looks for the timestep that it starts at, and draws a seed."""
    scheduler, x = ours(CONFIG, "dpmpp_2m_sde", 6), start()
    x = scheduler.step(0.1 * x, scheduler.timesteps[0], x).prev_sample
    timesteps = list(scheduler.timesteps)[1:]
    with NoReads():
        for t in timesteps:
            x = scheduler.step(0.1 * x, t, x).prev_sample
    assert x.isfinite().all()


def test_it_ends_where_the_config_says() -> None:
    for changes in ({"set_alpha_to_one": False}, {"final_sigmas_type": "sigma_min"}):
        theirs = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")
        theirs.set_timesteps(10)
        a = walk(unet(), theirs, start())
        b = walk(unet(), ours({**theirs.config, **changes}, "ddim", 10), start())
        assert float((a - b).abs().max()) < 1e-4


def test_a_walk_may_start_in_the_middle() -> None:
    """As pipelines from image to image do: with ``set_begin_index``, or at a timestep that is not the first."""
    network, x = unet(), start()
    whole = ours(CONFIG, "ddim", 8)
    results = []
    for begin in (None, 3):
        whole.set_timesteps(8)
        if begin is not None:
            whole.set_begin_index(begin)
        y = x
        with torch.no_grad():
            for t in whole.timesteps[3:]:
                y = whole.step(network(y, t).sample, t, y).prev_sample
        results.append(y)
    assert torch.equal(*results) and whole.step_index == 8
    noisy = whole.add_noise(x, torch.ones_like(x), torch.tensor([0, 999]))
    reference = diffusers.DDIMScheduler().add_noise(x, torch.ones_like(x), torch.tensor([0, 999]))
    torch.testing.assert_close(noisy, reference)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows(shift: float) -> None:
    """Euler on a flow is DDIM, but for the start at 1 - 1e-6 and theirs at 1."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    mine = ours(theirs.config, "ddim", 10)
    assert float((mine.timesteps - theirs.timesteps).abs().max()) < 2e-3
    network = unet()
    assert float((walk(network, theirs, start()) - walk(network, mine, start())).abs().max()) < 1e-4


def test_a_grid_by_name_has_fractions() -> None:
    scheduler = ours(CONFIG, "dpmpp_2m", 10, grid="log_snr")
    assert scheduler.timesteps.is_floating_point() and scheduler.timesteps[0] == 999 and abs(float(scheduler.timesteps[-1])) < 1e-6
    assert walk(unet(), scheduler, start()).isfinite().all()


def test_half_precision_is_kept_to_the_outside() -> None:
    network, scheduler = unet(), ours(CONFIG, "unipc", 5)
    x = start().half()
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(network(x.float(), t).sample.half(), t, x, return_dict=False)[0]
    assert x.dtype == torch.float16 and x.isfinite().all()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: ours(CONFIG, "unipcc"), "'unipcc' is not known as method. expected one of"),
        (lambda: ours({"_class_name": "ScoreSdeVeScheduler"}, "ddim"), r"sdesolve_gen\.load"),
        (lambda: ours({**CONFIG, "thresholding": True}, "ddim"), "thresholding"),
        (lambda: ours(CONFIG, "rodas5p"), "differentiates the network"),
        (lambda: ours(CONFIG, "baoab"), "another kind of equation"),
        (lambda: ours(CONFIG, "ddim", 0), "num_inference_steps=0; expected an integer from 1 to 1000"),
        (lambda: ours(CONFIG, "ddim", 1001), "num_inference_steps=1001"),
        (lambda: ours(CONFIG, "ddim", None), "num_inference_steps=None"),
        (lambda: ours(CONFIG, "ddim").set_timesteps(timesteps=[1, 5]), "expected falling numbers"),
        (lambda: ours(CONFIG, "ddim").set_timesteps(timesteps=[1000, 5]), "within the 1000 levels"),
        (lambda: ours(CONFIG, "ddim").set_timesteps(sigmas=[1.0, 0.5]), "sigmas are the nodes of a flow"),
        (lambda: ours(CONFIG, "ddim", timestep_spacing="even"), "timestep_spacing 'even' is not known"),
        (lambda: ours(CONFIG, "ddim", final_sigmas_type="one"), "final_sigmas_type 'one'"),
        (lambda: ours(CONFIG, "ddim", grid="ramp"), "'ramp' is not known as grid"),
        (lambda: gen.DiffusersScheduler().step(start(), 0, start()), "expected scheduler.set_timesteps"),
        (lambda: ours(CONFIG, "ddim").step(start(), 3, start()), "timestep=3 is none of those"),
        (lambda: [s.step(start(), t, start()) for s in [ours(CONFIG, "ddim", 2)] for t in (500, 0, 0)], "all 2 timesteps are done"),
        (lambda: [s.step(start(), s.timesteps[0], start()) for s in itertools.repeat(ours(CONFIG, "ddim", 4), 2)], "timestep=750 is not the next of this walk; expected 500"),
        (lambda: [s.step(start(), t, start()) for s in [ours(CONFIG, "ddim", 4)] for t in (750, torch.tensor(250))], "timestep=250 is not the next of this walk; expected 500"),
        (lambda: [s.step(x, t, x) for s in [ours(CONFIG, "ddim", 4)] for x, t in ((start(), 750), (start()[:1], 500))], r"sample is \(1, .* amid a walk of \(2, .*set_timesteps"),
        (lambda: ours({**CONFIG, "use_beta_sigmas": True}, "ddim"), "use_beta_sigmas=True is not known here"),
        (lambda: ours(CONFIG, "ddim", nodes="dpm"), "nodes 'dpm' is not known"),
    ],
)
def test_bad_arguments_are_refused(act: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


def test_a_pipeline_s_eta_is_not_dropped(tmp_path: Path) -> None:
    pipe = diffusers.DDIMPipeline(saved(tmp_path, diffusers.DDIMScheduler()).unet, diffusers.DDIMScheduler())
    pipe.scheduler = gen.DiffusersScheduler.from_config(pipe.scheduler.config, method="ddim")
    with pytest.raises(ValueError, match=r"eta=1.0 is no option of a step here; expected .*method_options=\{'eta': 1.0\}"):
        pipe(batch_size=1, num_inference_steps=3, eta=1.0)


def test_classes_of_diffusers_have_no_label_for_none(tmp_path: Path) -> None:
    saved(tmp_path, diffusers.DDIMScheduler(), num_class_embeds=5)
    m = gen.load(tmp_path)
    with pytest.raises(ValueError, match=r"labels hold \[5\]; expected integers from 0 to 4"):
        m.sample(1, "ddim", steps=3, labels=5)
    with pytest.raises(ValueError, match="knows its classes alone"):
        m.sample(1, "ddim", steps=3, labels=3, guidance=2.0)
