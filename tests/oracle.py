"""Every loss, metric and advantage once more: float64 NumPy, plain loops, no code shared with the library."""

import math

import numpy as np


def units(mask, labels, segment_ids=None):
    """Lists of (row, position) per unit: equal label, equal segment, one row; valid tokens only."""
    found = {}
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                segment = 0 if segment_ids is None else int(segment_ids[b, t])
                found.setdefault((b, segment, int(labels[b, t])), []).append((b, t))
    return list(found.values())


def responses(mask, segment_ids=None):
    return units(mask, np.zeros(mask.shape, int), segment_ids)


def labels_of(level, mask, subsentence_ids):
    if level == "token":
        return np.tile(np.arange(mask.shape[1]), (mask.shape[0], 1))
    return np.zeros(mask.shape, int) if level == "response" else subsentence_ids


def aggregate(values, mask, aggregation, norm_length=None, segment_ids=None, denominator=None):
    """Returns (scalar, denominator)."""
    total, tokens = 0.0, 0
    groups = responses(mask, segment_ids)
    for response in groups:
        summed = sum(values[p] for p in response)
        tokens += len(response)
        if aggregation == "seq-mean-token-mean":
            summed = summed / len(response)
        if aggregation == "seq-mean-token-sum-norm":
            summed = summed / (mask.shape[1] if norm_length is None else norm_length)
        if aggregation == "prompt-mean":
            summed = summed / norm_length[response[0]]
        total += summed
    own = tokens if aggregation in ("token-mean", "token-sum") else len(groups)
    if aggregation == "prompt-mean":
        own = sum(len(response) / norm_length[response[0]] for response in groups)
    divisor = own if denominator is None else denominator
    if aggregation == "token-sum":
        divisor = 1
    return (total / divisor if divisor else 0.0), own


def unit_log_ratios(logprobs, old_logprobs, mask, labels, segment_ids=None):
    result = np.zeros(mask.shape)
    for unit in units(mask, labels, segment_ids):
        mean = sum(logprobs[p] - old_logprobs[p] for p in unit) / len(unit)
        for p in unit:
            result[p] = mean
    return result


def clamp(x, low, high):
    return min(max(x, low), high)


def entropy_factors(entropies, mask, labels, segment_ids=None, *, rule="power", level="unit", exponent=0.5, floor=0.5,
                    ceiling=2.0, mean_entropy=None, entropy_std=None, vocab_size=None):  # fmt: skip
    of_unit = np.zeros(mask.shape)
    for unit in units(mask, labels, segment_ids):
        for p in unit:
            of_unit[p] = entropies[p] if level == "token" else sum(entropies[q] for q in unit) / len(unit)
    valid = [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t]]
    if mean_entropy is None:
        mean_entropy = sum(entropies[p] for p in valid) / len(valid) if valid else 0.0
    if entropy_std is None and valid:
        entropy_std = math.sqrt(sum((of_unit[p] - mean_entropy) ** 2 for p in valid) / len(valid))
    factors = np.ones(mask.shape)
    for p in valid:
        if rule == "power" and mean_entropy > 0:
            factors[p] = clamp((of_unit[p] / mean_entropy) ** exponent, floor, ceiling)
        if rule == "vocabulary":
            factors[p] = clamp((of_unit[p] / math.log(vocab_size)) ** exponent, floor, ceiling)
        if rule == "tanh" and entropy_std > 1e-13 * mean_entropy:
            z = math.tanh((of_unit[p] - mean_entropy) / entropy_std)
            factors[p] = 1 + z * ((ceiling - 1) if z > 0 else (1 - floor))
    return factors


def entropy_statistics(entropies, mask, labels, segment_ids=None, *, level="unit"):
    """Hbar, and the standard deviation of what each valid token carries: its unit's mean entropy, or its own."""
    of_unit = np.zeros(mask.shape)
    for unit in units(mask, labels, segment_ids):
        for p in unit:
            of_unit[p] = entropies[p] if level == "token" else sum(entropies[q] for q in unit) / len(unit)
    if not mask.any():
        return 0.0, 0.0
    mean = sum(entropies[mask]) / mask.sum()
    return mean, math.sqrt(sum((of_unit[mask] - mean) ** 2) / mask.sum())


def length_factors(mask, labels, segment_ids, reference):
    factors = np.ones(mask.shape)
    if reference is not None:
        for unit in units(mask, labels, segment_ids):
            for p in unit:
                factors[p] = clamp(math.sqrt(reference / len(unit)), 0.25, 4.0)
    return factors


def ppo(ratio, advantage, low, high, dual_clip=None):
    """J, and which bound removed the gradient: "low", "high", "dual" or ""."""
    value = min(ratio * advantage, clamp(ratio, 1 - low, 1 + high) * advantage)
    side = ""
    if advantage > 0 and ratio > 1 + high:
        side = "high"
    if advantage < 0 and ratio < 1 - low:
        side = "low"
    if dual_clip is not None and advantage < 0 and value < dual_clip * advantage:
        value, side = dual_clip * advantage, "dual"
    return value, side


def surrogate(name, logprobs, old_logprobs, advantages, mask, subsentence_ids=None, entropies=None, *, clip_low=0.2,
              clip_high=0.2, dual_clip=None, ratio_level=None, length_reference=None, entropy_bounds="both", limit=20.0,
              temperature_positive=1.0, temperature_negative=1.05, divergence="tv", threshold=0.2, truncate_at=20.0,
              exponent_positive=2.0, rate_positive=3.0, exponent_negative=3.0, rate_negative=2.0, segment_ids=None,
              weights=None, aggregation="seq-mean-token-mean", norm_length=None, denominator=None,
              **entropy_options):  # fmt: skip
    """(loss, metrics) of any objective: name is sspo, grpo, gspo, gmpo, cispo, sapo, dppo, vespo or m2po."""
    ratio_level = ratio_level or {"sspo": "subsentence", "gspo": "response"}.get(name, "token")
    labels = labels_of(ratio_level, mask, subsentence_ids)
    log_ratio = unit_log_ratios(logprobs, old_logprobs, mask, labels, segment_ids)
    lengths = length_factors(mask, labels, segment_ids, length_reference)
    factors = np.ones(mask.shape)
    if entropies is not None:
        factors = entropy_factors(entropies, mask, labels, segment_ids, **entropy_options)
    objective, ratios, sides = np.zeros(mask.shape), {}, {}
    if name == "gmpo":
        for response in responses(mask, segment_ids):
            advantage = sum(advantages[p] for p in response) / len(response)
            total = 0.0
            for p in response:
                d = clamp(log_ratio[p], -limit, limit)
                sides[p] = ""
                if advantage > 0 and d > clip_high:
                    d, sides[p] = clip_high, "high"
                if advantage < 0 and d < -clip_low:
                    d, sides[p] = -clip_low, "low"
                total += d
            for p in response:
                ratios[p] = math.exp(total / len(response))
                objective[p] = ratios[p] * advantage
    elif name == "vespo":
        for response in responses(mask, segment_ids):
            total = sum(clamp(logprobs[p] - old_logprobs[p], -limit, limit) for p in response)
            weight = math.exp(clamp(total, math.log(1e-8), limit))
            for p in response:
                ratios[p], sides[p] = weight, ""
                is_positive = advantages[p] >= 0
                k, rate = (exponent_positive, rate_positive) if is_positive else (exponent_negative, rate_negative)
                objective[p] = weight**k * math.exp(rate * (1 - weight)) * advantages[p] * logprobs[p]
    elif name == "m2po":
        kept = m2po_kept(log_ratio, mask, threshold)
        for unit in units(mask, labels, segment_ids):
            for p in unit:
                ratios[p] = math.exp(clamp(log_ratio[p], -limit, limit))
                sides[p] = "" if p in kept else "low" if ratios[p] < 1 else "high"
                objective[p] = ratios[p] * advantages[p] if p in kept else 0.0
    else:
        for unit in units(mask, labels, segment_ids):
            for p in unit:
                d = min(log_ratio[p], limit) if name == "gspo" else clamp(log_ratio[p], -limit, limit)
                ratio, advantage = math.exp(d), advantages[p]
                ratios[p], sides[p] = ratio, ""
                if name in ("sspo", "grpo", "gspo"):
                    low = clip_low * lengths[p] * (factors[p] if entropy_bounds in ("both", "low") else 1)
                    high = clip_high * lengths[p] * (factors[p] if entropy_bounds in ("both", "high") else 1)
                    objective[p], sides[p] = ppo(ratio, advantage, low, high, dual_clip)
                elif name == "cispo":
                    objective[p] = clamp(ratio, 1 - clip_low, 1 + clip_high) * advantage * logprobs[p]
                    sides[p] = "high" if ratio > 1 + clip_high else "low" if ratio < 1 - clip_low else ""
                elif name == "dppo":
                    new, old = math.exp(logprobs[p]), math.exp(old_logprobs[p])
                    distance = abs(new - old)
                    if divergence == "kl":
                        others = [max(1 - x, 0) + 1e-8 for x in (old, new)]
                        distance = old * (old_logprobs[p] - logprobs[p]) + (1 - old) * math.log(others[0] / others[1])
                    if distance > threshold and advantage * (new - old) > 0:
                        sides[p] = "high" if advantage > 0 else "low"
                    else:
                        objective[p] = min(ratio, truncate_at) * advantage * logprobs[p]
                elif name == "sapo":
                    tau = temperature_positive if advantage > 0 else temperature_negative
                    objective[p] = 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * advantage
    if weights is not None:
        objective = np.where(mask, objective * np.where(mask, weights, 0), 0)
    loss, _ = aggregate(-objective, mask, aggregation, norm_length, segment_ids, denominator)
    count = max(len(ratios), 1)
    metrics = {
        "ratio/mean": sum(ratios.values()) / count,
        "ratio/max": max(ratios.values(), default=0.0),
        "ratio/clip_fraction": sum(side != "" for side in sides.values()) / count,
        "ratio/clip_fraction_low": sum(side == "low" for side in sides.values()) / count,
        "ratio/clip_fraction_high": sum(side == "high" for side in sides.values()) / count,
        "ratio/clip_fraction_dual": sum(side == "dual" for side in sides.values()) / count,
        "policy/kl_old": sum(
            math.exp(clamp(logprobs[p] - old_logprobs[p], -20, 20)) - 1 - (logprobs[p] - old_logprobs[p])
            for p in ratios
        )
        / count,
        "loss/policy": aggregate(
            -objective, mask, "token-mean" if aggregation == "token-sum" else aggregation, norm_length, segment_ids
        )[0],
    }
    return loss, metrics


def m2po_kept(log_ratio, mask, threshold):
    """One token after the other leaves, the largest first and equal ones together, until the mean is small enough."""
    kept = {(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t]}
    while kept and sum(log_ratio[p] ** 2 for p in kept) / len(kept) >= threshold:
        largest = max(log_ratio[p] ** 2 for p in kept)
        kept = {p for p in kept if log_ratio[p] ** 2 < largest * (1 - 1e-13)}
    return kept


def kl(logprob, ref_logprob, estimator, old_logprob=0.0):
    d = logprob - ref_logprob
    k3 = math.exp(-d) - 1 + d
    return {"k1": d, "k2": d * d / 2, "k3": k3, "k3_unbiased": math.exp(logprob - old_logprob) * k3}[estimator]


def off_policy_kept(logprobs, sampler_logprobs, advantages, mask, threshold, segment_ids=None):
    kept = np.zeros(mask.shape, bool)
    for response in responses(mask, segment_ids):
        gap = sum(sampler_logprobs[p] - logprobs[p] for p in response) / len(response)
        is_negative = sum(advantages[p] for p in response) / len(response) < 0
        for p in response:
            kept[p] = not (is_negative and gap > threshold)
    return kept


def correction(old_logprobs, sampler_logprobs, mask, *, mode, level, reduction="mean", truncate_at=2.0,
               reject_below=0.5, reject_above=2.0, subsentence_ids=None, segment_ids=None):  # fmt: skip
    result = np.zeros(mask.shape)
    for unit in units(mask, labels_of(level, mask, subsentence_ids), segment_ids):
        log_weight = sum(old_logprobs[p] - sampler_logprobs[p] for p in unit)
        log_weight = log_weight if reduction == "sum" else log_weight / len(unit)
        weight = math.exp(clamp(log_weight, -20, 20))
        for p in unit:
            value = min(weight, truncate_at) if "truncate" in mode else 1.0
            if "reject" in mode and not reject_below <= weight <= reject_above:
                value = 0.0
            result[p] = value
    return result


def group_relative(rewards, group_ids, valid, *, scale, epsilon):
    result = np.zeros(len(rewards))
    everyone = [rewards[j] for j in range(len(rewards)) if valid[j]]
    for i in range(len(rewards)):
        if not valid[i]:
            continue
        group = [rewards[j] for j in range(len(rewards)) if valid[j] and group_ids[j] == group_ids[i]]
        mean = sum(group) / len(group)
        pool = {"group": group, "batch": everyone, "none": group}[scale]
        centre = sum(pool) / len(pool)
        std = math.sqrt(sum((r - centre) ** 2 for r in pool) / max(len(pool) - 1, 1))
        result[i] = (rewards[i] - mean) / (1 if scale == "none" else std + epsilon)
    return result


def leave_one_out(rewards, group_ids, valid, *, scale, epsilon):
    # The same standard deviation as GRPO's: its advantage over R_i - mean is 1 / (std + epsilon).
    centred = group_relative(rewards, group_ids, valid, scale="none", epsilon=epsilon)
    scaled = group_relative(rewards, group_ids, valid, scale=scale, epsilon=epsilon)
    result = np.zeros(len(rewards))
    for i in range(len(rewards)):
        others = [
            rewards[j] for j in range(len(rewards)) if j != i and valid[i] and valid[j] and group_ids[j] == group_ids[i]
        ]
        factor = scaled[i] / centred[i] if abs(centred[i]) > 1e-12 else 1.0
        result[i] = (rewards[i] - sum(others) / len(others)) * factor if others else 0.0
    return result


def reinforce_plus_plus(rewards, group_ids, valid, *, epsilon, lengths=None):
    centred = np.array(rewards, float)
    if group_ids is not None:
        centred = group_relative(rewards, group_ids, valid, scale="none", epsilon=0.0)
    lengths = [1] * len(rewards) if lengths is None else lengths
    pool = [centred[i] for i in range(len(rewards)) for _ in range(lengths[i]) if valid[i]]
    if not pool:
        return np.zeros(len(rewards))
    mean = sum(pool) / len(pool)
    variance = sum((x - mean) ** 2 for x in pool) / max(len(pool) - 1, 1)
    return np.array(
        [(x - mean) / math.sqrt(variance + epsilon) if v else 0.0 for x, v in zip(centred, valid, strict=True)]
    )


def max_rl(rewards, group_ids, valid):
    result = np.zeros(len(rewards))
    for i in range(len(rewards)):
        group = [rewards[j] for j in range(len(rewards)) if valid[j] and group_ids[j] == group_ids[i]]
        mean = sum(group) / len(group) if group else 0.0
        result[i] = (rewards[i] - mean) / mean if valid[i] and mean > 0 else 0.0
    return result


def pass_at_k(rewards, group_ids, valid, *, scale, epsilon):
    result = np.zeros(len(rewards))
    everyone = [rewards[j] for j in range(len(rewards)) if valid[j]]
    for i in range(len(rewards)):
        group = [rewards[j] for j in range(len(rewards)) if valid[j] and group_ids[j] == group_ids[i]]
        best = sorted(group)[::-1]
        if not valid[i] or len(group) < 2 or rewards[i] < best[0] or best[0] == best[1]:
            continue
        pool = everyone if scale == "batch" else group
        std = math.sqrt(sum((r - sum(pool) / len(pool)) ** 2 for r in pool) / (len(pool) - 1))
        result[i] = (best[0] - best[1]) / (1 if scale == "none" else std + epsilon)
    return result


def gdpo(terms, weights, group_ids, valid, *, epsilon):
    """Normalise each term in its group, sum, normalise the batch; in float64, one number at a time."""

    def relative(values, members):
        mean = sum(values[j] for j in members) / len(members)
        variance = sum((values[j] - mean) ** 2 for j in members) / max(len(members) - 1, 1)
        return {j: (values[j] - mean) / (math.sqrt(variance) + epsilon) for j in members}

    judged = [j for j in range(len(valid)) if valid[j]]
    sums = dict.fromkeys(judged, 0.0)
    for term, weight in zip(terms, weights, strict=True):
        for group in set(group_ids):
            members = [j for j in judged if group_ids[j] == group]
            for j, value in (relative(term, members) if members else {}).items():
                sums[j] += weight * value
    result = np.zeros(len(valid))
    for j, value in (relative(sums, judged) if judged else {}).items():
        result[j] = value
    return result


def logprobs_and_entropies(hidden, unembedding, targets, *, temperature=1.0, vocab_size=None):
    """Full logits, one row at a time."""
    logprobs, entropies = [], []
    for row, target in zip(hidden, targets, strict=True):
        logits = (row.astype(np.float64) @ unembedding.astype(np.float64))[:vocab_size] / temperature
        shifted = logits - logits.max()
        log_p = shifted - math.log(np.exp(shifted).sum())
        logprobs.append(log_p[target])
        entropies.append(-sum(math.exp(x) * x for x in log_p))
    return np.array(logprobs), np.array(entropies)


def delta_rule(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, log_decay: np.ndarray, rate: np.ndarray
) -> np.ndarray:
    """The gated delta rule of one head and one sequence, token by token: [time, value_dim], float64."""
    query, key, value, log_decay, rate = (np.asarray(x, np.float64) for x in (query, key, value, log_decay, rate))
    state, out = np.zeros((key.shape[1], value.shape[1])), np.zeros(value.shape)
    for t in range(len(key)):
        state = np.exp(log_decay[t]) * state
        state = state + rate[t] * np.outer(key[t], value[t] - key[t] @ state)
        out[t] = query[t] @ state
    return out
