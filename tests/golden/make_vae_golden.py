"""Write golden/vae: a tiny autoencoder of diffusers, latents, and its images.

python tests/golden/make_vae_golden.py   (needs the oracle extra)
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

FOLDER = Path(__file__).parent / "vae"


def main() -> None:
    torch.manual_seed(0)
    widths = (8, 16)
    model = AutoencoderKL(
        block_out_channels=widths,
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(FOLDER)
    latents = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        images = model.decode(latents / model.config.scaling_factor).sample
    np.savez_compressed(
        FOLDER / "images.npz",
        latents=latents.permute(0, 2, 3, 1).numpy(),
        images=images.permute(0, 2, 3, 1).numpy(),
    )


if __name__ == "__main__":
    main()
