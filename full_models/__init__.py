"""Large diffusion transformers as block stacks. Not yet part of this release."""
