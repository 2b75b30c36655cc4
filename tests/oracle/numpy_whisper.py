"""Whisper's forward pass in plain numpy: every site of one example, in the dtype of its inputs.

It exists to prove that the hooked torch model computes in float64 throughout.
"""

import math

import numpy as np

Arrays = dict[str, np.ndarray]


def numpy_forward(
    weights: Arrays, mel: np.ndarray, tokens: np.ndarray, *, encoder_heads: int, decoder_heads: int
) -> Arrays:
    """All activations of one example, keyed `encoder/<site>` and `decoder/<site>`.

    `weights` uses the names of a `transformers` state dict.
    """
    root = "model.encoder"
    enc = {"conv1_out": gelu(_conv(weights, f"{root}.conv1", mel.T, stride=1))}
    enc["conv2_out"] = gelu(_conv(weights, f"{root}.conv2", enc["conv1_out"], stride=2))
    enc["pos_embed"] = weights[f"{root}.embed_positions.weight"]
    x, layers = enc["conv2_out"] + enc["pos_embed"], []
    for layer in range(_count_layers(weights, root)):
        name = f"{root}.layers.{layer}"
        acts = {"resid_pre": x}
        acts |= _attention(weights, name, "self_attn", x, None, encoder_heads, causal=False)
        acts["resid_mid"] = x + acts["attn_out"]
        acts |= _mlp(weights, name, acts["resid_mid"])
        x = acts["resid_post"]
        layers.append(acts)
    enc |= _stack(layers)
    states = enc["ln_final"] = _norm(weights, f"{root}.layer_norm", x)

    root = "model.decoder"
    embedding = weights[f"{root}.embed_tokens.weight"]
    dec = {"embed": embedding[tokens]}
    dec["pos_embed"] = weights[f"{root}.embed_positions.weight"][: len(tokens)]
    x, layers = dec["embed"] + dec["pos_embed"], []
    for layer in range(_count_layers(weights, root)):
        name = f"{root}.layers.{layer}"
        acts = {"resid_pre": x}
        acts |= _attention(weights, name, "self_attn", x, None, decoder_heads, causal=True)
        x = acts["resid_mid"] = x + acts["attn_out"]
        cross = _attention(weights, name, "encoder_attn", x, states, decoder_heads, causal=False)
        acts |= {f"cross_{site}": value for site, value in cross.items()}
        acts["resid_mid_cross"] = x + acts["cross_attn_out"]
        acts |= _mlp(weights, name, acts["resid_mid_cross"])
        x = acts["resid_post"]
        layers.append(acts)
    dec |= _stack(layers)
    dec["ln_final"] = _norm(weights, f"{root}.layer_norm", x)
    dec["logits"] = dec["ln_final"] @ embedding.T
    return {f"encoder/{k}": v for k, v in enc.items()} | {f"decoder/{k}": v for k, v in dec.items()}


def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x), with the exact normal distribution function."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def _conv(weights: Arrays, name: str, x: np.ndarray, *, stride: int) -> np.ndarray:
    """A convolution of width 3 over [time, channel], zero-padded by one."""
    padded = np.pad(x, ((1, 1), (0, 0)))
    taps = np.stack([padded[i : i + len(x) : stride] for i in range(3)])
    return np.einsum("kti,oik->to", taps, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def _norm(weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def _attention(
    weights: Arrays,
    layer: str,
    kind: str,
    resid: np.ndarray,
    states: np.ndarray | None,
    heads: int,
    *,
    causal: bool,
) -> Arrays:
    x = _norm(weights, f"{layer}.{kind}_layer_norm", resid)
    name = f"{layer}.{kind}"

    def project(projection: str, source: np.ndarray) -> np.ndarray:
        out = _linear(weights, f"{name}.{projection}_proj", source)
        return out.reshape(len(source), heads, -1)

    source = x if states is None else states
    q, k, v = project("q", x), project("k", source), project("v", source)
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    exponent = np.exp(scores - scores.max(-1, keepdims=True))
    pattern = exponent / exponent.sum(-1, keepdims=True)
    z = np.einsum("hqk,khd->qhd", pattern, v)
    w_out = weights[f"{name}.out_proj.weight"].reshape(-1, heads, q.shape[-1])
    result = np.einsum("qhd,mhd->qhm", z, w_out)
    out = result.sum(1) + weights[f"{name}.out_proj.bias"]
    return {
        "q": q,
        "k": k,
        "v": v,
        "z": z,
        "attn_scores": scores,
        "pattern": pattern,
        "result": result,
        "attn_out": out,
    }


def _mlp(weights: Arrays, layer: str, resid: np.ndarray) -> Arrays:
    pre = _linear(weights, f"{layer}.fc1", _norm(weights, f"{layer}.final_layer_norm", resid))
    post = gelu(pre)
    out = _linear(weights, f"{layer}.fc2", post)
    return {"mlp_pre": pre, "mlp_post": post, "mlp_out": out, "resid_post": resid + out}


def _count_layers(weights: Arrays, root: str) -> int:
    return sum(
        name.startswith(f"{root}.layers.") and name.endswith(".fc1.bias") for name in weights
    )


def _stack(layers: list[Arrays]) -> Arrays:
    return {site: np.stack([acts[site] for acts in layers]) for site in layers[0]}
