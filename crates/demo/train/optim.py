"""Muon for matrices, AdamW for the rest, and the schedule of both."""

import math

import torch


def orthogonal(matrices, steps=5):
    """Newton-Schulz: a batch of matrices with all singular values near one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Each parameter comes with the shape of the matrices that it is made of: a fused weight is
    several. `cuts` maps a parameter to a function that gives [n, rows, columns] and one back."""

    def __init__(self, parameters, cuts, lr, momentum=0.95, decay=0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})
        self.cuts = cuts

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])
                cut, _ = self.cuts[p]
                matrices = cut(update)
                by_shape.setdefault(tuple(matrices.shape[1:]), []).append((p, matrices))
            for (rows, columns), found in by_shape.items():
                together = orthogonal(torch.cat([matrices for _, matrices in found]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                parts = together.split([len(matrices) for _, matrices in found])
                for (p, _), part in zip(found, parts, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.sub_(self.cuts[p][1](part).to(p.dtype), alpha=scale)


def whole(weight):
    """A weight that is one matrix."""
    return (lambda w: w.unsqueeze(0), lambda parts: parts[0])


def stacked_rows(rows):
    """Matrices one below the other."""
    return (lambda w: w.unflatten(0, (-1, rows)), lambda parts: parts.flatten(0, 1))


def stacked_columns(columns):
    """Matrices side by side."""
    return (
        lambda w: w.unflatten(1, (-1, columns)).transpose(0, 1),
        lambda parts: parts.transpose(0, 1).flatten(1),
    )


def optimizers(cuts, others, muon_lr, adam_lr):
    """`cuts`: matrix parameters and how they are cut. `others`: (parameters, factor of adam_lr)."""
    muon = Muon(list(cuts), cuts, lr=muon_lr, decay=0.03)
    groups = [{"params": list(p), "lr": adam_lr * factor} for p, factor in others]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["top"] = group["lr"]
    return [muon, adam]


def set_rate(optimizers, factor):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * factor


def schedule(done, warm=0.01, stable=0.5, last=0.02):
    """Share of the top rate when a share `done` of the training is over: warm up, stay, and go down
    along a cosine."""
    if done < warm:
        return done / warm
    if done < stable:
        return 1.0
    way = min(1.0, (done - stable) / (1 - stable))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * way))
