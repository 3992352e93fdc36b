"""Blocks of diffusers' transformers, edited by hand as perturbations change them."""

import contextlib

import torch

TEXT_LAST = ("SD3",)  # order of tokens in joint attention; Flux has text first


@contextlib.contextmanager
def perturbed(model, block, kind, image):
    """The model with one block perturbed.

    Args:
        model: a transformer of diffusers.
        block: number of the block, Flux's single blocks after its double ones.
        kind: as in ``Perturbation``, at full strength.
        image: number of image tokens.
    """
    blocks = [*getattr(model, "transformer_blocks", ()), *getattr(model, "blocks", ())]
    blocks += getattr(model, "single_transformer_blocks", ())
    chosen = blocks[block]
    if kind.startswith("drop_"):
        saved = {key: value.clone() for key, value in chosen.state_dict().items()}
        with torch.no_grad():
            _zero(chosen, kind, type(model).__name__)
        try:
            yield
        finally:
            chosen.load_state_dict(saved)
        return
    text_last = type(model).__name__.startswith(TEXT_LAST)
    attend = torch.nn.functional.scaled_dot_product_attention

    def replaced(query, key, value, *args, **kwargs):
        if query.shape[-2] != key.shape[-2]:  # cross-attention
            return attend(query, key, value, *args, **kwargs)
        places = torch.arange(query.shape[-2])
        is_image = places < image if text_last else places >= len(places) - image
        return _attention(attend, kind, query, key, value, is_image)

    def enter(*_):
        torch.nn.functional.scaled_dot_product_attention = replaced

    def leave(*_):
        torch.nn.functional.scaled_dot_product_attention = attend

    hooks = [
        chosen.register_forward_pre_hook(enter),
        chosen.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        leave()
        for hook in hooks:
            hook.remove()


def _attention(attend, kind, query, key, value, is_image):
    if kind == "identity":
        return value
    if kind == "identity_image":
        both = is_image[:, None] & is_image[None]
        allowed = ~both | torch.eye(len(is_image), dtype=torch.bool)
        return attend(query, key, value, attn_mask=allowed)
    if kind == "blur":
        query = query.clone()
        mean = query[..., is_image, :].mean(-2, keepdim=True)
        query[..., is_image, :] = mean.expand_as(query[..., is_image, :])
        return attend(query, key, value)
    assert kind == "temper"
    return value.mean(-2, keepdim=True).expand_as(value)


def _zero(block, kind, model):
    """Zero the last maps of a branch."""
    if hasattr(block, "proj_out"):  # Flux's single block, with one map for both
        width = block.proj_out.out_features
        if kind == "drop_attention":
            block.proj_out.weight[:, :width] = 0.0
        else:
            block.proj_out.weight[:, width:] = 0.0
            block.proj_out.bias[:] = 0.0
        return
    is_wan = model.startswith("Wan")
    names = {
        "drop_attention": ["attn1" if is_wan else "attn", None if is_wan else "attn2"],
        "drop_cross": ["attn2"],
        "drop_mlp": ["ffn" if is_wan else "ff", "ff_context"],
    }[kind]
    for name in names:
        part = getattr(block, name, None) if name else None
        if part is None:
            continue
        if kind == "drop_mlp":
            maps = [part.net[2]]
        else:
            maps = [part.to_out[0], getattr(part, "to_add_out", None)]
        for layer in maps:
            if layer is not None:
                layer.weight.zero_()
                layer.bias.zero_()
