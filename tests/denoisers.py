"""Denoisers, noise levels and round trips for tests of inversions, torch only."""

import torch
from controlled_diffusion.inversion.method import Derivative, replay


def silent(x, denoised):
    pass


def draw(*shape, seed=0, dtype=torch.float64):
    """Noise that float32 can hold, in any precision."""
    return torch.randn(*(shape or (2, 4, 8, 8)), generator=torch.Generator().manual_seed(seed)).to(dtype)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def vp(sigma: float) -> float:
    return (1 + sigma**2) ** -0.5


def one(sigma: float) -> float:
    return 1.0


def network(z: torch.Tensor, sigma: torch.Tensor, prompt: float = 0.0) -> torch.Tensor:
    """An arbitrary bounded function, no steeper than networks are."""
    return 0.5 * torch.tanh(z.roll(1, -1) * 0.6 - z.flip(-2) * 0.3 + sigma.view(-1, 1, 1, 1).log1p() + prompt)


def eps_model(x, sigma, prompt=0.0):
    s = sigma.view(-1, 1, 1, 1)
    return x - s * network(x / (1 + s**2).sqrt(), sigma, prompt)


def v_model(x, sigma, prompt=0.0):
    s = sigma.view(-1, 1, 1, 1)
    z = x / (1 + s**2).sqrt()
    return (z - s * network(z, sigma, prompt)) / (1 + s**2).sqrt()


def flow_model(x, sigma, prompt=0.0):
    return x - sigma.view(-1, 1, 1, 1) * network(x, sigma, prompt)


MODELS = {"eps": eps_model, "v": v_model, "flow": flow_model}
FAMILIES = tuple(MODELS)


def derivative(family: str, cfg: float = 1.0, prompt: float = 0.0) -> Derivative:
    """The derivative of a wild model under CFG between two prompts."""
    model = MODELS[family]

    def guided(x, sigma):
        base = model(x, sigma, 0.5)
        return base + cfg * (model(x, sigma, prompt) - base)

    return Derivative(guided, one if family == "flow" else vp)


def levels(family: str, steps: int, strength: float = 1.0) -> tuple[float, ...]:
    """Falling sigmas to 0: Stable Diffusion's, or a flow's, less the first steps where strength is below 1."""
    if family == "flow":
        full = [1 - i / steps for i in range(steps)]
    else:
        signal = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
        noise = ((1 - signal) / signal).sqrt()
        full = [float(noise[round(999 * (1 - i / steps))]) for i in range(steps)]
    return (*full[steps - max(1, int(steps * strength)) :], 0.0)


def round_trip(method, family: str, sigmas, cfg: float = 1.0, dtype=torch.float64) -> float:
    """The relative error of the image after the way up and down."""
    x0, way = draw(dtype=dtype), derivative(family, cfg)
    return apart(replay(method, way, method.encode(way, x0, sigmas, silent)), x0)


class Gaussian(Derivative):
    """The exact derivative of Gaussian data N(mean, deviation^2), in float64 throughout; `at_top` is where x0 comes from."""

    def __init__(self, input_scale=one, mean=0.5, deviation=0.7):
        super().__init__(None, input_scale)
        self.mean, self.deviation = mean, deviation

    def __call__(self, x, sigma, level=None):
        seen = x if level is None else x * (self.input_scale(level) / self.input_scale(sigma))
        self.calls += 1
        self.denoised = self.mean + self.deviation**2 / (self.deviation**2 + sigma**2) * (seen - self.mean)
        return (seen - self.denoised) / sigma

    def at_top(self, x0: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.mean + (x0 - self.mean) * (self.deviation**2 + sigma**2) ** 0.5 / self.deviation


def errors(method_for, input_scale=one, power: float = 1.0, steps=(100, 200, 400), top: float = 10.0) -> list[float]:
    """Relative errors of the noise that a method finds for Gaussian data, on grids that are even where power is 1."""
    found, x0 = [], draw()
    for n in steps:
        way, sigmas = Gaussian(input_scale), tuple(top * (1 - i / n) ** power for i in range(n + 1))
        found.append(apart(method_for(n).encode(way, x0, sigmas, silent).states[0][0], way.at_top(x0, top)))
    return found


class Seen(Derivative):
    """A derivative that keeps the sigmas at which it was evaluated."""

    def __init__(self):
        super().__init__(self._model)
        self.sigmas = []

    def _model(self, x, sigma):
        self.sigmas.append(float(sigma[0]))
        return x * 0.5
