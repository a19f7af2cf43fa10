"""Graphs, points, recommendation, tables and control in the styles of their own repositories."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_word_styles import MinAttention


class MessagePassing(nn.Module):
    """GIN: messages summed where edges end, by `index_add`."""

    def __init__(self, attention=False):
        super().__init__()
        self.encode, self.message = nn.Linear(5, 12), nn.Linear(12, 10)
        self.update, self.eps = (
            nn.Sequential(nn.Linear(12 + 10, 16), nn.ReLU(), nn.Linear(16, 12)),
            nn.Parameter(torch.zeros(1)),
        )
        self.readout = nn.Linear(12, 3)

    def forward(self, x, edge_index):
        x = F.relu(self.encode(x))
        sent = F.relu(self.message(x[edge_index[0]]))
        summed = torch.zeros(x.size(0), sent.size(1), device=x.device, dtype=x.dtype).index_add_(
            0, edge_index[1], sent
        )
        x = self.update(torch.cat([(1 + self.eps) * x, summed], -1))
        return self.readout(x.mean(0, keepdim=True))


class ScatterGat(nn.Module):
    """GAT: shares of the neighbours normalised by `scatter_add`."""

    def __init__(self, heads=2, out=6):
        super().__init__()
        self.heads, self.out, self.lin = heads, out, nn.Linear(5, heads * out, bias=False)
        self.att_src, self.att_dst = (
            nn.Parameter(torch.randn(1, heads, out)),
            nn.Parameter(torch.randn(1, heads, out)),
        )
        self.last = nn.Linear(heads * out, 3)

    def forward(self, x, edge_index):
        x = self.lin(x).view(-1, self.heads, self.out)
        src, dst = edge_index
        alpha = F.leaky_relu((x * self.att_src).sum(-1)[src] + (x * self.att_dst).sum(-1)[dst], 0.2).exp()
        total = torch.zeros_like(x[..., 0]).scatter_add(0, dst[:, None].expand_as(alpha), alpha)
        messages = x[src] * (alpha / (total[dst] + 1e-9)).unsqueeze(-1)
        out = torch.zeros_like(x).scatter_add(0, dst[:, None, None].expand_as(messages), messages)
        return self.last(F.elu(out.reshape(-1, self.heads * self.out)))


class DenseGcn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(5, 12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x, adj):
        return self.fc(F.relu(adj @ self.b(F.relu(adj @ self.a(x)))).mean(1))


class EdgeConv(nn.Module):
    """DGCNN on points: nearest neighbours are gathered, then a maximum over them."""

    def __init__(self, k=3):
        super().__init__()
        self.k, self.conv1 = (
            k,
            nn.Sequential(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.LeakyReLU(0.2)),
        )
        self.conv2, self.fc = nn.Sequential(nn.Conv1d(12, 16, 1), nn.ReLU()), nn.Linear(16, 4)

    def forward(self, x):
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        square = (x**2).sum(dim=1, keepdim=True)
        idx = (-square - inner - square.transpose(2, 1)).topk(self.k, dim=-1)[1]
        b, c, n = x.shape
        near = x.transpose(2, 1)[torch.arange(b, device=x.device)[:, None, None], idx]
        own = x.transpose(2, 1).unsqueeze(2).expand(b, n, self.k, c)
        y = self.conv1(torch.cat((near - own, own), dim=3).permute(0, 3, 1, 2)).max(dim=-1)[0]
        return self.fc(self.conv2(y).max(dim=-1)[0])


class PointNet(nn.Module):
    """A transform of the input that is learnt, then shared layers and a maximum."""

    def __init__(self):
        super().__init__()
        self.t1, self.t2, self.t3 = nn.Conv1d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 9)
        self.conv1, self.bn, self.conv2 = nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12), nn.Conv1d(12, 16, 1)
        self.fc = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x):
        t = self.t3(F.relu(self.t2(F.relu(self.t1(x)).max(2)[0]))).view(-1, 3, 3) + torch.eye(
            3, device=x.device
        )
        x = torch.bmm(x.transpose(2, 1), t).transpose(2, 1)
        return self.fc(self.conv2(F.relu(self.bn(self.conv1(x)))).max(2)[0])


class Dlrm(nn.Module):
    """Embeddings, a bottom and a top MLP, and all products of pairs."""

    def __init__(self, sparse=False, width=8):
        super().__init__()
        self.emb = nn.ModuleList(nn.EmbeddingBag(10, width, mode="sum", sparse=sparse) for _ in range(3))
        self.bot = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())

    def forward(self, dense, ids):
        x = self.bot(dense)
        ly = [emb(ids[:, i : i + 1]) for i, emb in enumerate(self.emb)]
        T = torch.cat([x, *ly], dim=1).view(x.shape[0], -1, x.shape[1])
        Z = torch.bmm(T, T.transpose(1, 2))
        li, lj = torch.tensor([1, 2, 2, 3, 3, 3]), torch.tensor([0, 0, 1, 0, 1, 2])
        return self.top(torch.cat([x, Z[:, li, lj]], dim=1))


class DeepFm(nn.Module):
    """Factorisation machine, linear part and MLP on one table of all fields."""

    def __init__(self, fields=3, width=6):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(30, width), nn.Embedding(30, 1)
        self.out = fields * width
        self.register_buffer("offsets", torch.arange(fields) * 10)
        self.mlp = nn.Sequential(
            nn.Linear(self.out, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1)
        )

    def forward(self, ids):
        ids = ids + self.offsets
        e = self.embedding(ids)
        fm = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.linear(ids).sum(1) + fm + self.mlp(e.view(-1, self.out))).squeeze(1)


class CrossNet(nn.Module):
    """DCN: crosses of low rank with the first layer's input, and a deep part."""

    def __init__(self, dim=10, rank=6):
        super().__init__()
        self.u = nn.ModuleList(nn.Linear(rank, dim) for _ in range(2))
        self.v = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(2))
        self.deep, self.last = (
            nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()),
            nn.Linear(dim + 8, 1),
        )

    def forward(self, x):
        y = x
        for u, v in zip(self.u, self.v, strict=True):
            y = x * u(v(y)) + y
        return self.last(torch.cat([y, self.deep(x)], 1))


class Gates(nn.Module):
    """MMoE: experts shared by tasks, with a gate for each task."""

    def __init__(self, dim=10):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3)
        )
        self.gates = nn.ModuleList(nn.Sequential(nn.Linear(dim, 3), nn.Softmax(dim=1)) for _ in range(2))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(2)
        )

    def forward(self, x):
        made = torch.stack([expert(x) for expert in self.experts], dim=1)
        return [
            tower((made * gate(x).unsqueeze(2)).sum(1))
            for tower, gate in zip(self.towers, self.gates, strict=True)
        ]


class InterestUnit(nn.Module):
    """DIN: an MLP weighs each item of a history by the candidate."""

    def __init__(self, width=6):
        super().__init__()
        self.item, self.unit = (
            nn.Embedding(20, width),
            nn.Sequential(nn.Linear(4 * width, 12), nn.PReLU(), nn.Linear(12, 1)),
        )
        self.mlp = nn.Sequential(nn.Linear(2 * width, 10), nn.ReLU(), nn.Linear(10, 1))

    def forward(self, history, target):
        keys, query = self.item(history), self.item(target)
        wide = query.unsqueeze(1).expand(-1, keys.size(1), -1)
        weight = self.unit(torch.cat([wide, keys, wide - keys, wide * keys], -1))
        return self.mlp(torch.cat([(weight * keys).sum(1), query], -1))


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.item = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, user, item):
        return (
            self.scale.exp() * F.normalize(self.user(user), dim=-1) @ F.normalize(self.item(item), dim=-1).t()
        )


class FeatureTokens(nn.Module):
    """FT-Transformer: each number of a row as a token, a ReGLU MLP."""

    def __init__(self, features=5, width=16):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(features, width)),
            nn.Parameter(torch.randn(features, width)),
        )
        self.cls, self.attention = nn.Parameter(torch.randn(width)), MinAttention(width, 4)
        self.linear0, self.linear1, self.norm, self.head = (
            nn.Linear(width, 24),
            nn.Linear(12, width),
            nn.LayerNorm(width),
            nn.Linear(width, 2),
        )

    def forward(self, x):
        x = self.weight[None] * x[:, :, None] + self.bias[None]
        x = torch.cat([self.cls.view(1, 1, -1).expand(len(x), 1, -1), x], 1)
        x = x + self.attention(self.norm(x))
        a, b = self.linear0(x).chunk(2, dim=-1)
        return self.head((x + self.linear1(a * F.relu(b)))[:, 0])


class RadianceField(nn.Module):
    """NeRF: encoded places, the input again in the middle, a view direction at the end."""

    def __init__(self, width=16):
        super().__init__()
        self.pts = nn.ModuleList(
            [nn.Linear(15, width), nn.Linear(width, width), nn.Linear(width + 15, width)]
        )
        self.feature, self.alpha = nn.Linear(width, width), nn.Linear(width, 1)
        self.views, self.rgb = nn.Linear(width + 3, 8), nn.Linear(8, 3)

    def forward(self, x):
        places, views = torch.split(x, [3, 3], dim=-1)
        code = torch.cat(
            [places, *(f(places * 2.0**i) for i in range(2) for f in (torch.sin, torch.cos))], -1
        )
        h = code
        for i, layer in enumerate(self.pts):
            h = F.relu(layer(h))
            if i == 1:
                h = torch.cat([code, h], -1)
        h, alpha = torch.cat([self.feature(h), views], -1), self.alpha(h)
        return torch.cat([self.rgb(F.relu(self.views(h))), alpha], -1)


class Dueling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU())
        self.value = nn.Sequential(nn.Linear(12 * 25, 16), nn.ReLU(), nn.Linear(16, 1))
        self.advantage = nn.Sequential(nn.Linear(12 * 25, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        x = self.conv(x).view(x.size(0), -1)
        a = self.advantage(x)
        return self.value(x) + a - a.mean(1, keepdim=True)


class Highway(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.first, self.h, self.t, self.last = (
            nn.Linear(8, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, 3),
        )

    def forward(self, x):
        x = self.first(x)
        gate = torch.sigmoid(self.t(x))
        return self.last(gate * F.relu(self.h(x)) + (1 - gate) * x)


def _draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 3, 0]])
IDS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 1, 2]])
TABLE_STYLES = {
    "gin": (MessagePassing, (_draw(5, 5), EDGES)),
    "gat": (ScatterGat, (_draw(5, 5), EDGES)),
    "gcn": (DenseGcn, (_draw(2, 4, 5), _draw(2, 4, 4).abs())),
    "dgcnn": (EdgeConv, _draw(2, 3, 8)),
    "pointnet": (PointNet, _draw(2, 3, 8)),
    "dlrm": (Dlrm, (_draw(4, 4), IDS)),
    "dlrm-sparse": (lambda: Dlrm(sparse=True), (_draw(4, 4), IDS)),
    "deepfm": (DeepFm, IDS),
    "dcn": (CrossNet, _draw(4, 10)),
    "mmoe": (Gates, _draw(4, 10)),
    "din": (InterestUnit, (IDS, torch.tensor([3, 4, 5, 6]))),
    "two-towers": (TwoTowers, (_draw(4, 6), _draw(4, 5))),
    "ft-transformer": (FeatureTokens, _draw(2, 5)),
    "nerf": (RadianceField, _draw(6, 6)),
    "dueling-dqn": (Dueling, _draw(2, 3, 16, 16)),
    "highway": (Highway, _draw(4, 8)),
}
