"""Time of multi-condition guidance beside the host's CFG: `python . run tests/bench/multi_cfg.py`.

For 1 to 6 channels: seconds and network evaluations a step, and the host's CFGGuider on a batch with the same number of
evaluations a step, measured in turn in the same run. The ratio is what the channels cost beyond the network itself.
"""

import argparse
import statistics
import time

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.channels import MultiCFG

from harness.demo_pictures import Studio
from host.sampling import Count

SD15 = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_res_blocks=[2, 2, 2, 2],
    channel_mult=[1, 2, 4, 4],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1] * 9 + [0] * 3,
    transformer_depth_middle=1,
    context_dim=768,
    use_spatial_transformer=True,
    legacy=False,
    use_checkpoint=False,
    use_linear_in_transformer=False,
    adm_in_channels=None,
    use_temporal_attention=False,
    use_temporal_resblock=False,
)


def sd15():
    """SD1.5's UNet with random weights."""
    config = comfy.supported_models.SD15(dict(SD15))
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(torch.float16 if device.type == "cuda" else torch.float32, None)
    model = comfy.model_base.BaseModel(config, device=device)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())


def seconds_a_step(guider, latent: torch.Tensor, steps: int) -> float:
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    start = time.perf_counter()
    guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", "sd15"], default="demo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5, help="each time is the median of this many runs, taken in turn")
    options = parser.parse_args()
    model, width, side = (Studio().model, 128, 16) if options.model == "demo" else (sd15(), 768, 64)
    count, texts = Count(model), [[[torch.randn(1, 77, width), {}]] for _ in range(7)]
    print("| channels | evaluations a step | ms a step | host's CFG, same evaluations, ms a step | ratio |\n|---|---|---|---|---|")
    for n in range(1, 7):
        ours = MultiCFG(count.model, texts[0], [Channel(t, 2.0) for t in texts[1 : n + 1]])
        host = comfy.samplers.CFGGuider(model)
        host.set_conds(texts[1], texts[0])
        one, many = torch.zeros(1, 4, side, side), torch.zeros(n + 1, 4, side, side)
        seconds_a_step(ours, one, 2), seconds_a_step(host, many, 2)
        count.rows = 0
        times = [(seconds_a_step(ours, one, options.steps), seconds_a_step(host, many, options.steps)) for _ in range(options.repeats)]
        a, b = (1000 * statistics.median(t) for t in zip(*times))
        print(f"| {n} | {count.rows / options.steps / options.repeats:.0f} | {a:.1f} | {b:.1f} | {a / b:.2f} |", flush=True)


if __name__ == "__main__":
    main()
