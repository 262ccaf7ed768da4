import jax

from sspo_jax.losses import sspo_loss
from sspo_jax.subsentences import Segmenter


def make_step(apply, optimizer, segmenter: Segmenter):  # apply(params, tokens) -> log-probs [batch, time], yours
    def step(params, state, batch):
        ids = segmenter(batch["tokens"], batch["mask"])  # on the device, inside jit
        arrays = batch["old_logprobs"], batch["advantages"], batch["mask"], ids, batch["entropies"]

        def loss(params):
            return sspo_loss(apply(params, batch["tokens"]), *arrays, clip_low=0.02, clip_high=0.028)

        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state, value, metrics

    return jax.jit(step)
