"""A trained model: a network and its card, that is everything sampling needs to know about it.

On disk a model is a folder with ``model.safetensors`` (weights) and ``card.json`` (:mod:`sdesolve_gen.card`).  Loading one
runs no code that came with it.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import sdesolve as sd

from . import hub
from ._errors import ModelFileError, unknown
from ._reading import checked_device, placed, read_network
from ._writing import write_network
from .adapters import diffusers, edm
from .adapters.score_sde import read_score_sde
from .card import CARD, MOMENTS, OWN, WEIGHTS, check_card, read_card
from .class_conditional import apart, class_labels, class_score, on_the_way, without_classes
from .classifiers import Classifier, embedded_classifiers
from .conditioning.classifier_free import Guidance, Labelled
from .conditioning.labels import checked_labels
from .conditioning.operators import LUMA
from .moments import read_moments, write_moments
from .networks import Execution, check_told
from .processes import make_process, network_time
from .restoration import Restored, colorize, inpaint, restore
from .sampling import Samples, draw, names
from .wrapping import as_module, check

ASSETS = Path(__file__).parent / "assets"


class Model:
    """A score network with its process, parameterisation and data range.

    Arguments:
        network: (x, time) -> output; becomes frozen, in evaluation mode.
        card: as described in :mod:`sdesolve_gen.card`.

    Raises:
        ModelFileError, ValueError: a card that is none, or of other classes than the network's.

    Attributes:
        network, card: as given.
        process: the forward process, :class:`sdesolve.Process`.
        score: grad_x ln p_t(x) for every solver, :class:`sdesolve.Score`.
        shape: (C, H, W) of an image.
        data_range: (low, high) of its values.
        levels: number of values that a pixel of the data took.
        classes: number of classes whose labels the network knows, 0 for none; ``score`` is then that of no class.
        knows_none: whether a network that knows classes has a label for none, too; those of diffusers have not.
        moments: of its data, :class:`sdesolve.Range`, from which ``sample(..., "auto")`` starts; None where nobody knows them. A trained model has them; of an
            imported one, set ``m.moments = sd.Range.of(images)``.
        label: the class of a model that :meth:`of_class` made; None for every other.
        execution: how the network is executed, :class:`sdesolve_gen.networks.Execution`.
    """

    def __init__(self, network: nn.Module, card: Mapping[str, Any]) -> None:
        check_card(card, "card")
        check_told(network, card.get("classes", 0))
        self.network, self.card = network.eval().requires_grad_(False), dict(card)
        self.process = make_process(card["process"], card["process_options"])
        self._told = network_time(card["time"], self.process)
        self.classes: int = card.get("classes", 0)
        self.execution = Execution()
        self.knows_none: bool = card["network"] != "DiffusersUNet2D"
        self.label: int | None = None
        self._of: Callable[[nn.Module], sd.Score] | None = None
        self.moments: sd.Range | None = None
        self._executed = self.network
        self.score = self._score_of(self._executed)
        self.shape: tuple[int, ...] = tuple(card["shape"])
        self.data_range: tuple[float, float] = (float(card["data_range"][0]), float(card["data_range"][1]))
        self.levels: int = card["levels"]

    @property
    def data_std(self) -> float:
        """About how much the data scatter about their mean: what the card has as ``sigma_data``, else a quarter of the data range, 0.5 for images from -1 to 1."""
        low, high = self.data_range
        return float(self.card.get("sigma_data", (high - low) / 4))

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a network without any, the CPU."""
        return next((tensor.device for tensor in (*self.network.parameters(), *self.network.buffers())), torch.device("cpu"))

    def to(self, device: torch.device | str | None = None, **execution: Any) -> Model:
        """Move the weights, in place, and choose how the network is executed; returns the model.

        Arguments:
            device: as in "cpu" or "cuda"; None for where it is.
            execution: of :class:`sdesolve_gen.networks.Execution`, as in ``precision="bf16"`` or ``compile=True``; what is not named stays as it is.

        Raises:
            ValueError, TypeError: a device that is not there; an unknown precision or option.
        """
        if device is not None:
            self.network.to(checked_device(device))
        if execution:
            try:
                self.execution = replace(self.execution, **execution)
            except TypeError as error:
                raise TypeError(f"{error}; expected a device, or precision=, compile=, checkpoint=, channels_last= of sdesolve_gen.networks.Execution.") from error
            self._executed = self.execution(self.network)
            self.score = self._own_score(self._executed)
        return self

    def class_score(self, labels: int | Tensor) -> sd.Score:
        """grad_x ln p_t(x | label) for every solver, of a model that knows classes.

        Arguments:
            labels: one int for all rows, or (B,) integers, one a row (with a fixed grid, where rows stay in the batch); ``classes`` is "of no class".

        Raises:
            ValueError, TypeError: a model without classes, a label out of range; when called, another number of rows than labels.
        """
        if not self.classes:
            raise ValueError(f"labels were given, and {without_classes(self)}.")
        return self._labelled(checked_labels(labels, self.classes, null=self.knows_none))

    def _labelled(self, labels: Tensor) -> sd.Score:
        return self._score_of(Labelled(self._executed, labels.to(self.device)).eval())

    def _score_of(self, network: nn.Module) -> sd.Score:
        return sd.as_score(network, self.process, predicts=self.card["predicts"], time=self._told, sigma_data=self.card.get("sigma_data", 0.5))

    def _own_score(self, executed: nn.Module) -> sd.Score:
        """That of the class that this model is of, where it is of one."""
        return self._score_of(executed) if self._of is None else self._of(executed)

    def of_class(
        self, label: int | Sequence[int] | Tensor | np.ndarray, *, guidance: float | Guidance = 1.0, classifier: Classifier | None = None, classifier_scale: float = 1.0
    ) -> Model:
        """This model for one class, or for none (``classes``), which shares its weights: a model that knows no other, as a restoration wants it.

        Arguments:
            label: the class, or a single one in a list, a tensor or an array.
            guidance, classifier, classifier_scale: as for :meth:`sample`; every method of the model then goes by the guided score.

        Raises:
            ValueError, TypeError: a model without classes and no classifier, a label out of range, a classifier of another process or image, a wrong scale.
        """
        several: list[Any] = [label]
        if isinstance(label, Tensor | np.ndarray):
            several = label.reshape(-1).tolist()
        elif isinstance(label, Sequence) and not isinstance(label, str):
            several = list(label)
        if len(several) != 1:
            first = several[0] if several else 0
            raise ValueError(f"label={label!r} are {len(several)} classes; expected one, as in m.of_class({first!r}): a model for each, one after another.")
        own = class_labels(self, 1, several[0], guidance, classifier, classifier_scale)
        if own is None:
            raise ValueError(f"label={label!r}, and {without_classes(self)}.")

        def of(executed: nn.Module) -> sd.Score:
            whole = copy.copy(self)
            whole._executed, whole.score = executed, self._own_score(executed)
            return class_score(whole, own, guidance, classifier, classifier_scale)

        model = copy.copy(self)
        model._of, model.score, model.classes, model.label = of, of(self._executed), 0, int(own[0])
        model.moments = None  # those are of all classes together
        return model

    def sample(
        self,
        n: int,
        method: str | sd.Stepper = "pc",
        *,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        sample_ids: Sequence[int] | Tensor | None = None,
        denoise: bool | Literal["extrapolate"] = "extrapolate",
        progress: bool = False,
        labels: int | Sequence[int] | Tensor | None = None,
        guidance: float | Guidance = 1.0,
        classifier: Classifier | None = None,
        classifier_scale: float = 1.0,
        **options: Any,
    ) -> Tensor:
        """New images, (n, C, H, W) float32, clipped to the data range as the published code clips them.

        Image i is a function of (seed, sample id i) and the method, whatever the batch around it; convolutions round differently
        in batches of different sizes, so between those the images agree to rounding and not to the last bit.
        An image whose solve failed is named in a :class:`sdesolve.SolveWarning`; :meth:`draw` tells which and what each cost.

        Arguments:
            n: number of images, >= 1.
            method: a name from ``sdesolve.methods()`` or a stepper; an ODE method follows the probability flow.
            steps: of the time grid; default 500, or, for a method with an error estimate such as "rk45", chosen per image.
            seed: 0 <= seed < 2**64; default: drawn from torch's global generator.
            batch_size: images solved together; default n.
            sample_ids: (n,) integers >= 0 that name the images; default 0..n-1.  Images of one name, and one class, are the same image.
            denoise: end where no noise is left, in one network call more; True for Tweedie's formula, False for neither; "auto" leaves it out for ``nfe`` of one evaluation.
            progress: draw a progress bar.
            labels: the classes to draw, one int for all images or n of them; a model that knows classes wants them, ``classes`` itself is "of no class".
                Where steps are chosen per image, or with ``parallel=``, images of one class are solved together.
            guidance: of a model that knows classes, the scale of classifier-free guidance or a :class:`sdesolve_gen.Guidance`; 1 is the model itself.
            classifier: for a model that knows no classes, :func:`sdesolve_gen.load_classifier`; it may guide one that does, too.
            classifier_scale: what its gradient is multiplied by; 1 is Bayes' rule.
            options: of :func:`sdesolve.solve` and of the method, as in ``rtol=1e-4`` or ``snr=0.16``.

        Raises:
            ValueError, TypeError: bad arguments, before the first network call.
        """
        chosen: dict[str, Any] = {"steps": steps, "seed": seed, "batch_size": batch_size, "sample_ids": sample_ids, "denoise": denoise, "progress": progress}
        chosen |= {"labels": labels, "guidance": guidance, "classifier": classifier, "classifier_scale": classifier_scale}
        return self.draw(n, method, **chosen, **options).images

    def draw(self, n: int, method: str | sd.Stepper = "pc", **options: Any) -> Samples:
        """:meth:`sample`, with ids, network calls and status of every image; the same arguments."""
        return draw(self, n, method, **options)

    def inpaint(
        self, images: Tensor, mask: Tensor | np.ndarray, *, noise_std: float = 0.0, noise: str = "gaussian", peak: float | None = None, **options: Any
    ) -> Restored:
        """Draws of what may stand in the unknown pixels of images; the known ones are kept.

        Arguments:
            images: (n, C, H, W); floats in the data range, or integers 0..levels - 1.  What stands in unknown pixels is not looked at.
            mask: 1 or True where a pixel is known; (H, W) for all channels, (C, H, W), or (n, 1 or C, H, W), one for each image.
            noise_std: standard deviation of noise on the known pixels, in the units of the data range; with 0 they come back as they were given.
            noise, peak: as for :meth:`restore`: with ``noise="poisson"`` the images are counts.
            options: of :meth:`restore`, as in ``draws=8`` or ``method="repaint"``.

        Raises:
            ValueError: a mask of another shape or with values other than 0 and 1; images of another shape or range; bad options.
        """
        return inpaint(self, images, mask, noise_std=noise_std, noise=noise, peak=peak, **options)

    def colorize(
        self, gray: Tensor, *, weights: Sequence[float] = LUMA, noise_std: float = 0.0, noise: str = "gaussian", peak: float | None = None, **options: Any
    ) -> Restored:
        """Draws of the colours that gray images may have had; their luminance is kept.

        Arguments:
            gray: (n, 1, H, W), or three equal channels; floats in the data range, or integers 0..levels - 1.
            weights: (3,) of red, green and blue in the luminance, whatever their sum, which is not 0; default Rec. 601.
            noise_std: standard deviation of noise on the gray images, in the units of the data range.
            noise, peak: as for :meth:`restore`.
            options: of :meth:`restore`.

        Raises:
            ValueError: a model without three channels; three different channels; weights that sum to 0; images of another shape or range; bad options.
        """
        return colorize(self, gray, weights=weights, noise_std=noise_std, noise=noise, peak=peak, **options)

    def restore(self, y: Tensor, operator: Any, noise_std: float | None = None, method: str = "auto", **options: Any) -> Restored:
        """Draws of the images that a measurement y = A x + noise may have come from: super-resolution, deblurring, tomography, ...

        "auto" is "pigdm" in 100 steps of ``dpmpp_2m_sde``; "mmps" with ``iterations=1`` for a model of colour images, whose pixels and channels are too much
        alike for PiGDM; and "dps" for an operator that is not linear.  Without noise, and where A^+ is no large number, the draws are moved the last bit
        onto A x = y; ``residual`` says how far the method itself came.

        "smc" is twisted sequential Monte Carlo (:func:`sdesolve.smc`), exact in the limit of many particles: each draw is chosen among ``particles`` of its
        own (16), so it costs 16 times the calls and derivatives of "pigdm"; the answer also has ``log_evidence`` and ``ess``.  It walks by itself and
        takes ``particles``, ``steps``, ``grid``, ``resample`` and ``data_std`` for options.  Without noise, y is taken for one with that of the last time,
        sigma(eps)/alpha(eps).

        Arguments:
            y: (n, *measured), floats in the units of the data range.
            operator: A, of :mod:`sdesolve_gen.conditioning.operators`; any object with ``A`` and ``A_adjoint``, as a deepinv ``Physics``; or a
                function x -> A x made of torch's operations.
            noise_std: standard deviation of the noise of y, in the units of y; default 0.05, with Poisson noise 0 and otherwise that of the reading.
            method: "auto", "smc" or a name out of ``sdesolve_gen.conditioning.CONDITIONINGS``.
            noise: "gaussian", or "poisson" ("dps", "pigdm" and "mmps" alone): what A sees of x - low is counted, y = A low + k (high - low)/peak with
                k ~ Poisson(A (x - low) peak/(high - low)), where (low, high) is the data range.
            peak: with Poisson noise, the counts of what is as bright as the data can be, > 0.
            draws: independent draws for each measurement; their mean and spread are ``.mean`` and ``.std``.
            sampler: what solves, a name out of ``sdesolve.methods()`` or a stepper, with ``steps`` and its other options.
            method_options: options of the conditioning method by name, where the solver has one of the same: ``{"steps": 1000}`` is the published rule of "dps",
                in so many equal steps of ``euler_maruyama``; with it, all ``options`` are the solver's.
            seed, sample_ids, batch_size, denoise, progress: as for :meth:`sample`.  Draw d of image i has noise of its own, and is the same whatever stands beside
                it but for the network's rounding, whose order of sums depends on the batch.  "mmps", and "pigdm" where steps are chosen by a tolerance,
                amplify that: there another draw of the same law may come out.
            options: of the conditioning method, as in ``zeta=0.5`` of "dps"; of the sampler and :func:`sdesolve.solve`.  ``prior_std`` of "pigdm" and
                ``data_std`` of "smc" are :attr:`data_std` unless they are given.  ``within`` of "dps" and "pigdm" is (0, 5 standard deviations of the data along
                their first direction) in 40 steps or more of one evaluation with the SDE's noise, where the model's ``moments`` say how wide the data are, which saves derivatives
                where the noise hides what y says; (0.0, math.inf) is everywhere.

        Returns:
            images (n, draws, C, H, W), mean, std, residual, nfe and status; see :class:`sdesolve_gen.restoration.Restored`.

        Raises:
            ValueError, TypeError: before the first network call: y of another shape or in other units than the data, noise_std < 0, an operator that is not linear or
                whose adjoint is not its adjoint, unknown names, bad options.

        Warns:
            SolveWarning: pixels that look like those of a picture in [0, 1] where the data lie in [-1, 1]; draws that are far from y, or did not arrive, or hang on a
                single one of their particles.
        """
        return restore(self, y, operator, noise_std, method, **options)

    def log_likelihood(
        self,
        images: Tensor,
        *,
        labels: int | Sequence[int] | Tensor | None = None,
        seed: int | None = None,
        sample_ids: Sequence[int] | Tensor | None = None,
        **options: Any,
    ) -> sd.Likelihood:
        """ln p of each image; ``m.log_likelihood(images).bits_per_dim(m.data_range, m.levels)``.

        Arguments:
            images: (n, C, H, W); floats in the data range are taken as they are, as :meth:`sample` gives them, with a warning where they are levels.  Integers are the levels of
                pixels, 0..levels - 1, and are dequantised first.
            labels: the class of each image, or one for all; a model that knows classes wants them, ``classes`` itself is "of no class".  Images of one
                class are solved together.
            seed, sample_ids: name probes and dequantisation; default: drawn from torch's global generator, ids 0..n-1.
            options: of :func:`sdesolve.log_likelihood`, as in ``probes=4`` or ``rtol=1e-4``.

        Raises:
            ValueError, TypeError: images of another shape, or off the levels; labels that are missing or not the model's; bad options.
        """
        self._check(images)
        seed, ids = int(torch.randint(2**62, ())) if seed is None else seed, torch.tensor(names(len(images), sample_ids))
        x, parts = self.scaled(images, seed, ids), list(apart(self, labels, len(images)))
        if images.is_floating_point() and _on_levels(images, self.data_range, self.levels):
            said = f"the images are floats that all lie on the {self.levels} levels of pixels, where a density has no bits/dim to speak of; expected"
            cure = f"integers, 0..{self.levels - 1}, which are dequantised, or sdesolve.dequantise(images, {self.data_range}, seed=0)."
            warnings.warn(f"{said} {cure}", sd.SolveWarning, stacklevel=2)
        with warnings.catch_warnings():
            if len(parts) > 1:
                warnings.simplefilter("ignore", sd.SolveWarning)  # it would count within the class; joined, the images are numbered
            found = [
                sd.log_likelihood(self.process, score, x[rows.to(x.device)], seed=seed, sample_ids=ids[rows], **options) for score, rows in parts
            ]
        return sd.Likelihood.join(found, torch.cat([rows for _, rows in parts])) if len(parts) > 1 else found[0]

    def encode(self, images: Tensor, *, labels: int | Sequence[int] | Tensor | None = None, seed: int = 0, **options: Any) -> sd.Latent:
        """The latent code of each image; images, ``labels`` and ``seed`` as for :meth:`log_likelihood`, options of :func:`sdesolve.encode`."""
        x, parts = self.scaled(images, seed), list(apart(self, labels, len(images)))
        found = [sd.encode(self.process, score, x[rows.to(x.device)], **options) for score, rows in parts]
        return sd.Latent.join(found, torch.cat([rows for _, rows in parts])) if len(parts) > 1 else found[0]

    def decode(self, latents: sd.Latent | Tensor, *, labels: int | Sequence[int] | Tensor | None = None, **options: Any) -> Tensor:
        """The image of each code, (n, C, H, W) clipped to the data range; ``labels`` as for :meth:`log_likelihood`, options of :func:`sdesolve.decode`,
        as in ``temperature=0.8``."""
        codes = latents if isinstance(latents, sd.Latent) else latents.to(self.device)
        parts = list(apart(self, labels, len(codes.x if isinstance(codes, sd.Latent) else codes)))
        own = [codes.rows(rows) if isinstance(codes, sd.Latent) else codes[rows.to(codes.device)] for _, rows in parts] if len(parts) > 1 else [codes]
        images = torch.cat([sd.decode(self.process, score, part, **options).x for (score, _), part in zip(parts, own, strict=True)])
        return images[torch.cat([rows for _, rows in parts]).argsort().to(images.device)].clamp(*self.data_range)

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        count: int = 8,
        *,
        labels: int | Sequence[int] | Tensor | None = None,
        labels_b: int | Sequence[int] | Tensor | None = None,
        temperature: float = 1.0,
        **options: Any,
    ) -> Tensor:
        """(count, n, C, H, W) images on the way from images a to images b, (n, C, H, W), by their codes; both ends included.

        Arguments:
            a, b: images as for :meth:`encode`.
            count: images of each way, >= 2.
            labels, labels_b: the classes of a and of b, as for :meth:`log_likelihood`; those of b are those of a unless they are given.  An image on the way
                is decoded as of the class of the nearer end.
            temperature: the codes are multiplied by it.
            options: of :func:`sdesolve.encode` and :func:`sdesolve.decode` both, as in ``rtol=1e-3``.

        Raises:
            ValueError, TypeError: what are no images of the model, as many on both ends and within its data range; labels and options as for :meth:`log_likelihood`.
        """
        for images in (a, b):
            self._check(images)
        ends = [class_labels(self, len(a), of, 1.0, None, 1.0) for of in (labels, labels if labels_b is None else labels_b)]
        for name, images in (("a", a), ("b", b)):
            check_inside_range(images, self.data_range, name)
        start, end = (self.encode(x, labels=of, **options).x for x, of in zip((a, b), ends, strict=True))
        codes = sd.interpolate(start, end, count)
        nearer = None if ends[0] is None else on_the_way(torch.stack(ends), count).flatten()  # type: ignore[arg-type, union-attr]
        images = self.decode(codes.flatten(0, 1), labels=nearer, temperature=temperature, **options)
        return images.reshape(count, len(a), *self.shape)

    def check(
        self, images: Tensor | None = None, *, labels: int | Sequence[int] | Tensor | None = None, n: int = 64, seed: int = 0, **options: Any
    ) -> sd.ModelCheck:
        """Whether the network is what the card says: regresses its output on noise added to images; ``print`` it for a table.

        Arguments:
            images: data, 64 or more, as for :meth:`log_likelihood`.  None: ``n`` samples of its own, by 50 steps of DDIM, which shows a model at odds
                with itself, as a wrong sign or time makes it, and not one that was trained on other data.
            labels: the class of each, or one for all, as for :meth:`log_likelihood`.
            seed: names the noise.
            options: of :func:`sdesolve.check_model`, as in ``times=4``.

        Raises:
            sdesolve.ModelCheckError: (a ValueError) it is not; says what fits.
        """
        return check(self, images, labels=labels, n=n, seed=seed, **options)

    def scaled(self, images: Tensor, seed: int = 0, sample_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """Images as the network takes them: floats as they are, integers dequantised into the data range; on its device."""
        self._check(images)
        if images.is_floating_point():
            return images.to(self.device)
        unit = sd.dequantise(images, (0, self.levels - 1), self.levels, seed=seed, sample_ids=sample_ids) / (self.levels - 1)
        low, high = self.data_range
        return (low + (high - low) * unit).to(self.device)

    def _check(self, images: Tensor) -> None:
        """That these are images of the model's shape, one at least."""
        expected = f"expected (n, {', '.join(map(str, self.shape))})"
        if not isinstance(images, Tensor):
            raise TypeError(f"images are a {type(images).__name__}; {expected}, a tensor, as of torch.stack(images).")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape or not len(images):
            raise ValueError(f"images have shape {tuple(images.shape)}; {expected}: images[None] for a single one.")

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write ``model.safetensors``, ``card.json`` and, where they are known, the moments, each whole or not at all; returns the folder.

        The card names the hash of the weights, so that a card and weights that do not belong together are refused by :func:`load`.

        Arguments:
            folder: is made where it is not there.
            dtype: of the weights in the file; torch.float16 takes half the space, and they are float32 again, rounded to 11 bits, when loaded.

        Raises:
            ValueError: a weight that is not finite in that dtype, or a model of one class of another; nothing is written.
        """
        if self.label is not None:
            raise ValueError(f"this model is of class {self.label} of another, and a card has no place for that; expected the other to be saved, and of_class when it is loaded.")
        folder, card = Path(folder), {name: value for name, value in self.card.items() if name != "moments"}
        if self.moments is not None:
            card["moments"] = write_moments(folder / MOMENTS, self.moments, self.shape, dtype)
        write_network(folder / WEIGHTS, folder / CARD, self.network, card, "model", dtype)
        if self.moments is None:
            (folder / MOMENTS).unlink(missing_ok=True)  # of another model, which the card does not speak of
        return folder


def inside_range(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """(n,) bool: which images, floats, are finite and within the range, to rounding."""
    low, high = data_range
    slack = 1e-6 * (high - low)
    return ((images >= low - slack) & (images <= high + slack)).flatten(1).all(1)


def check_inside_range(images: Tensor, data_range: tuple[float, float], name: str) -> None:
    """That images that are floats lie in the range; raises ValueError, which calls them ``name``."""
    if images.is_floating_point() and not bool((kept := inside_range(images, data_range)).all()):
        i = int((~kept).nonzero()[0])
        low, high, first, last = *data_range, float(images[i].min()), float(images[i].max())
        raise ValueError(f"{name}: image {i} of {len(images)} runs from {first:g} to {last:g}, and the model's data from {low:g} to {high:g}; expected images in that range.")


def _on_levels(images: Tensor, data_range: tuple[float, float], levels: int) -> bool:
    """Whether all are values that pixels take: the levels from end to end, or the middles of the bins."""
    low, high = data_range
    unit = (images.double() - low) / (high - low)
    return any(bool(((level - level.round()).abs() < 1e-3).all()) for level in (unit * (levels - 1), unit * levels - 0.5))


def embedded() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(card.parent.name for card in ASSETS.glob(f"*/{CARD}"))


def load(
    model: str | Path,
    device: torch.device | str = "cpu",
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    ema: bool = True,
    revision: str | None = None,
    network: nn.Module | Callable[..., Tensor] | None = None,
    **execution: Any,
) -> Model:
    """A trained model, ready to sample from.  Runs no code that comes with it.

    Arguments:
        model: the name of an embedded model, as in ``load("mnist")``, or a folder that ``Model.save`` or ``train`` wrote, or a folder of a
            diffusers pipeline with a ``UNet2DModel``, or the id of one on the hub: ``load("OWNER/NAME", revision=COMMIT)``, or a ``.pkl`` of EDM.
            A name wins over a folder of that name in the working directory: ``load("./mnist")`` is the folder.
            With a ``config``, a checkpoint of score_sde_pytorch, as in ``load("checkpoint_8.pth", config="config.json")``.
        device: where the weights go, as in "cpu" or "cuda".
        config: the configuration of that checkpoint: a JSON file, or ``config.to_dict()``.
        ema: take its averaged weights, which the published samples are from, and not the last ones.
        revision: 40 hexadecimal digits of a commit, for a hub id alone.
        network: yours, for a model that was made by :func:`wrap`; its weights are replaced.
        execution: how the network is executed, as in ``precision="bf16"`` or ``compile=True``: see ``Model.to``.

    Raises:
        ModelFileError (a ValueError): a file that is missing, truncated, not what it says it is, or does not fit the others.
        ValueError: a name that is neither an embedded model nor a folder nor a hub id at a commit; a device that is not there.
        ImportError: the model needs another package.
    """
    device = checked_device(device)
    found, card, moments = _read(model, config, ema, revision, None if network is None else as_module(network))
    loaded = Model(placed(found, device), card).to(**execution)
    loaded.moments = moments
    return loaded


def _read(
    model: str | Path, config: str | Path | Mapping[str, Any] | None, ema: bool, revision: str | None, own: nn.Module | None
) -> tuple[nn.Module, dict[str, Any], sd.Range | None]:
    """The network, card and moments that are meant, as :func:`load` says."""
    if config is not None:
        return *read_score_sde(Path(model), config, ema), None
    if isinstance(model, str) and model not in embedded() and not Path(model).exists() and hub.is_hub_id(model):
        folder, origin = hub.fetch(model, revision, (WEIGHTS, CARD, MOMENTS, *diffusers.FILES)), {"hub": model, "revision": revision}
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is for an id of the hub; {str(model)!r} is none, or is here: leave it out.")
    elif Path(model).suffix == ".pkl" and not Path(model).is_dir():
        return *edm.read_model(Path(model)), None
    else:
        folder = _folder(model)
        origin = {"folder": folder.resolve().name}
    if (folder / diffusers.INDEX).exists():
        return *diffusers.read_pipeline(folder, str(next(iter(origin.values()))), origin), None
    if not (folder / CARD).exists():
        raise ModelFileError(f"{folder / CARD} is not a file, and there is no {diffusers.INDEX} either; expected a folder that Model.save wrote, or of a pipeline of diffusers.")
    return _read_ours(folder, own)


def _read_ours(folder: Path, own: nn.Module | None) -> tuple[nn.Module, dict[str, Any], sd.Range | None]:
    """What ``Model.save`` wrote, whose files a training may be replacing one after the other at this moment."""
    card = read_card(folder / CARD)
    if own is not None and card["network"] != OWN:
        raise ValueError(f"network is given, and {folder / CARD} names its own, {card['network']!r}; expected network for a model made by wrap alone.")
    try:
        moments = read_moments(folder / MOMENTS, card) if "moments" in card else None
        return read_network(folder / WEIGHTS, folder / CARD, card, own), card, moments
    except ModelFileError:
        time.sleep(0.1)  # longer than two renames are apart
        if read_card(folder / CARD) == card:
            raise
    return _read_ours(folder, own)


def _folder(model: str | Path) -> Path:
    """Where a model lies; raises ValueError for what cannot be one."""
    if isinstance(model, str) and model in embedded():
        return ASSETS / model
    if model in embedded_classifiers():
        raise ValueError(f"{model!r} is a classifier; expected load_classifier({model!r}), which guides a model: m.sample(16, classifier=..., labels=...).")
    path = Path(model)
    if path.is_dir():
        return path
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        raise ValueError(f"{path} is a PyTorch checkpoint; one of score_sde_pytorch needs its configuration: load({str(path)!r}, config='config.json') (--config config.json).")
    if path.exists():
        raise ValueError(f"{path} is a file; {_READABLE}, as in load({str(path.parent)!r}), or a .pkl of EDM.")
    raise ValueError(f"{unknown('model', str(model), embedded())} Or a folder with {CARD} and {WEIGHTS}: there is none at {str(path)!r}.")


_READABLE = f"expected the name of an embedded model, a folder with {CARD} and {WEIGHTS} or with a pipeline of diffusers"
