import jax
import optax

from sspo_jax.losses import sspo_loss


def loss(params, tokens, batch):  # batch: old_logprobs, advantages, mask, entropies, each [batch, time]
    return sspo_loss(log_probs(params, tokens), subsentence_ids=segmenter(tokens, batch["mask"]), **batch)


@jax.jit
def step(params, state, tokens, batch):  # log_probs and optimizer are yours; segmenter = Segmenter.from_tokenizer(...)
    gradients, metrics = jax.grad(loss, has_aux=True)(params, tokens, batch)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, metrics
