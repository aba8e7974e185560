"""What may be learned from the log-probabilities of all legal answers of a state: losses in closed form.

Each takes `log_p`, (A,) float32, as `grpo.model.trie.log_probs` gives it: of whole answers, so that their
probabilities add up to less than 1, and what is missing is everything else that a model may say. Rewards are in points.
"""

import torch

LEAST = 1e-4  # added to a standard deviation, as TRL does
ALMOST = -1e-6  # nats; a sum of probabilities that rounding puts above is put there


def advantages(chances: torch.Tensor, reward: torch.Tensor, scaled: bool = True) -> torch.Tensor:
    """(A,) distances of rewards from their mean, where each has its chance: in standard deviations, or in points.

    GRPO's advantage within a group (Shao et al. 2024, arXiv:2402.03300), in the limit of a group without end; not
    `scaled`, that of Liu et al. 2025, arXiv:2503.20783.
    """
    chances = chances / chances.sum()
    centred = reward - chances @ reward
    return centred / ((chances @ centred.square()).sqrt() + LEAST) if scaled else centred


def expected_gradient(log_p: torch.Tensor, reward: torch.Tensor, other: float, scaled: bool = True) -> torch.Tensor:
    """Loss whose gradient is that of GRPO in the limit of a group without end, reversed: -sum pi(a) A(a).

    `other`: the reward of all else that may be said. Expected policy gradients: Ciosek & Whiteson 2018,
    arXiv:1801.03326. An answer counts as a whole, not divided by its length, which is no part of the gradient and
    favours short answers (Liu et al. 2025, arXiv:2503.20783).
    """
    p = log_p.exp()
    chances = torch.cat([p.detach(), (1 - p.detach().sum()).clamp(min=0)[None]])
    gain = advantages(chances, torch.cat([reward, reward.new_tensor([other])]), scaled)
    return -(p * (gain[:-1] - gain[-1])).sum()


def target_policy(log_p: torch.Tensor, reward: torch.Tensor, eta: float, scaled: bool = True) -> torch.Tensor:
    """(A,) the legal answers' chances among themselves times exp(advantage / eta), which add up to 1.

    What target policy optimisation teaches, arXiv:2604.06159. The advantage is that among the legal answers; by the
    cross-entropy to it their chances among all that may be said grow.
    """
    among = log_p.log_softmax(dim=0)
    return (among + advantages(among.exp(), reward, scaled) / eta).softmax(dim=0)


def cross_entropy(log_p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Nats, to the target probabilities of the legal answers, such as a teacher's; all on one is a shown answer."""
    return -(target * log_p).sum()


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """Nats, of the legal answers among themselves."""
    among = log_p.log_softmax(dim=0)
    return -(among.exp() * among).sum()


def divergence(log_p: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(pi || reference), nats, of the legal answers and, as one, all else."""
    now, then = _with_rest(log_p), _with_rest(reference)
    return (now.exp() * (now - then)).sum()


def _with_rest(log_p: torch.Tensor) -> torch.Tensor:
    legal = log_p.logsumexp(dim=0).clamp(max=ALMOST)
    return torch.cat([log_p, (-torch.expm1(legal)).log()[None]])
