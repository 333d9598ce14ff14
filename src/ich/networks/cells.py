"""GRU and LSTM cells on a CPU: a step takes all studies of a batch, in both directions, and the gradient is by hand.

Of studies of unequal length torch makes some thirty small operations a step, and twice as many for the gradient. Here
what does not depend on the step before is taken out of the loop, which leaves five to nine and three to six. Gates come
in torch's order. The rows of a loop, 2 N of them, are those of `ich.networks.recurrent.Places.into`.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

if TYPE_CHECKING:
    from ich.networks.recurrent import Places


class Gru(Function):
    """States [N, 2, H] of gates [N, 2, 3 H] from the inputs, weights [2, 3 H, H] and the new gate's bias [2, H].

    That bias belongs to the hidden state, which the reset gate multiplies; all others are in the gates already.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, places: "Places") -> Tensor:
        hidden, turned = weight.shape[2], weight.transpose(1, 2)
        a = gates.flatten(0, 1).index_select(0, places.into)
        new, states = a[:, 2 * hidden :].clone(), gates.new_empty(len(a), hidden)
        a[:, 2 * hidden :] = bias[places.into % 2]
        before = gates.new_zeros(2, places.sizes[0], hidden)
        for step, fresh, state in zip(*(_steps(x, places) for x in (a, new, states)), strict=True):
            if before.shape[1] > step.shape[1]:
                before = before[:, : step.shape[1]]
            reset, update, inner = step.baddbmm_(before, turned).split(hidden, -1)
            step[..., : 2 * hidden].sigmoid_()
            fresh.addcmul_(reset, inner).tanh_()
            before = torch.lerp(fresh, before, update, out=state)
        found = _by_slice(states, places)
        ctx.save_for_backward(a, new, found, weight)
        ctx.places = places
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, new, states, weight = ctx.saved_tensors
        places, hidden = ctx.places, weight.shape[2]
        before = _before(states, places)
        reset, update, inner = a.split(hidden, -1)
        # by how much the state changes with the new gate, ahead of its tanh; then with all three
        of_new = (1 - update) * (1 - new * new)
        factors = a.new_empty(len(a), 3, hidden)
        torch.mul(of_new, reset, out=factors[:, 2])
        torch.mul(factors[:, 2], inner * (1 - reset), out=factors[:, 0])
        torch.mul((_by_step(before, places) - new) * update, 1 - update, out=factors[:, 1])
        d_states, d_gates = _by_step(grads[0], places), torch.empty_like(a)
        d, d_gate, factor, update = (_steps(x, places) for x in (d_states, d_gates, factors, update.contiguous()))
        for t in range(len(d) - 1, -1, -1):
            torch.mul(d[t].unsqueeze(2), factor[t], out=d_gate[t].view_as(factor[t]))
            if t:
                d[t - 1][:, : d[t].shape[1]].addcmul_(d[t], update[t]).baddbmm_(d_gate[t], weight)
        of_hidden = _by_slice(d_gates, places)
        d_weight = torch.bmm(of_hidden.permute(1, 2, 0), before.transpose(0, 1))
        torch.mul(d_states, of_new, out=d_gates[:, 2 * hidden :])
        return _by_slice(d_gates, places), d_weight, of_hidden[..., 2 * hidden :].sum(0), None


class Lstm(Function):
    """States [N, 2, H] of gates [N, 2, 4 H] from the inputs, all biases in them, and weights [2, 4 H, H]."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, places: "Places") -> Tensor:
        hidden, turned = weight.shape[2], weight.transpose(1, 2)
        a = gates.flatten(0, 1).index_select(0, places.into)
        memories, shown, states = gates.new_empty(3, len(a), hidden)
        before = memory = gates.new_zeros(2, places.sizes[0], hidden)
        for step, kept, seen, state in zip(*(_steps(x, places) for x in (a, memories, shown, states)), strict=True):
            studies = step.shape[1]
            if before.shape[1] > studies:
                before, memory = before[:, :studies], memory[:, :studies]
            let_in, forget, new, let_out = step.baddbmm_(before, turned).split(hidden, -1)
            step[..., : 2 * hidden].sigmoid_()
            new.tanh_()
            let_out.sigmoid_()
            memory = torch.mul(forget, memory, out=kept).addcmul_(let_in, new)
            before = torch.mul(let_out, torch.tanh(memory, out=seen), out=state)
        found = _by_slice(states, places)
        ctx.save_for_backward(a, memories, shown, found, weight)
        ctx.places = places
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        a, memories, shown, states, weight = ctx.saved_tensors
        places, hidden = ctx.places, weight.shape[2]
        let_in, forget, new, let_out = a.split(hidden, -1)
        factors = a.new_empty(len(a), 3, hidden)
        torch.mul(let_in * new, 1 - let_in, out=factors[:, 0])
        torch.mul(let_in, 1 - new * new, out=factors[:, 2])
        earlier = _by_step(_before(_by_slice(memories, places), places), places)
        torch.mul(earlier * forget, 1 - forget, out=factors[:, 1])
        of_memory, of_out = let_out * (1 - shown * shown), shown * let_out * (1 - let_out)
        d_states, d_gates = _by_step(grads[0], places), torch.empty_like(a)
        columns = (d_states, d_gates, factors, of_memory, of_out, forget.contiguous())
        d, d_gate, factor, of_memory, of_out, forget = (_steps(x, places) for x in columns)
        d_memory = a.new_zeros(2, 0, hidden)
        for t in range(len(d) - 1, -1, -1):
            studies = d[t].shape[1]
            if d_memory.shape[1] < studies:  # some end here
                d_memory = pad(d_memory, (0, 0, 0, studies - d_memory.shape[1]))
            d_memory.addcmul_(d[t], of_memory[t])
            gate = d_gate[t].view(2, studies, 4, hidden)
            torch.mul(d_memory.unsqueeze(2), factor[t], out=gate[:, :, :3])
            torch.mul(d[t], of_out[t], out=gate[:, :, 3])
            if t:
                d[t - 1][:, :studies].baddbmm_(d_gate[t], weight)
                d_memory.mul_(forget[t])
        of_gates = _by_slice(d_gates, places)
        return of_gates, torch.bmm(of_gates.permute(1, 2, 0), _before(states, places).transpose(0, 1)), None


def _steps(rows: Tensor, places: "Places") -> list[Tensor]:
    """Views [2, studies, ...] of rows [2 N, ...], one a step."""
    cut = rows.split([2 * studies for studies in places.sizes])
    return [part.view(2, studies, *rows.shape[1:]) for part, studies in zip(cut, places.sizes, strict=True)]


def _by_step(values: Tensor, places: "Places") -> Tensor:
    """Values [N, 2, ...] of the slices as rows [2 N, ...] of the steps."""
    return values.flatten(0, 1).index_select(0, places.into)


def _by_slice(rows: Tensor, places: "Places") -> Tensor:
    """The other way."""
    return rows.index_select(0, places.back).unflatten(0, (-1, 2))


def _before(states: Tensor, places: "Places") -> Tensor:
    """What each direction knew when it came to a slice: [N, 2, H] of states [N, 2, H]."""
    before = torch.empty_like(states)
    before[1:, 0], before[:-1, 1] = states[:-1, 0], states[1:, 1]
    first, last = places.ends
    before[first, 0] = 0
    before[last, 1] = 0
    return before
