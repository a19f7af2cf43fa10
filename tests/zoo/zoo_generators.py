"""Diffusion, generation and restoration of images in the styles of their own repositories."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from zoo_patch_styles import IMAGE


def timestep_embedding(t, dim):
    freqs = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    args = t[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class TimeResBlock(nn.Module):
    """Guided diffusion: the time scales and shifts behind a group norm."""

    def __init__(self, a, b, emb, scale_shift=True):
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(4, a), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * b if scale_shift else b))
        self.norm, self.out = nn.GroupNorm(4, b), nn.Sequential(nn.SiLU(), nn.Conv2d(b, b, 3, padding=1))
        self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1)

    def forward(self, x, emb):
        h = self.in_layers(x)
        e = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out(self.norm(h) * (1 + scale) + shift)
        else:
            h = self.out(self.norm(h + e))
        return self.skip(x) + h


class QkvAttention(nn.Module):
    """The legacy attention of guided diffusion: heads fold into the batch before the split."""

    def __init__(self, channels, heads=2):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(4, channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(x))
        bs, width, length = qkv.shape
        ch = width // (3 * self.heads)
        q, k, v = qkv.reshape(bs * self.heads, ch * 3, length).split(ch, dim=1)
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(ch), dim=-1)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(bs, -1, length)
        return (x + self.proj_out(h)).reshape(b, c, *spatial)


class DiffusionUNet(nn.Module):
    def __init__(self, attention=QkvAttention, scale_shift=True):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.d1, self.down = TimeResBlock(8, 8, 16, scale_shift), nn.Conv2d(8, 8, 3, 2, 1)
        self.d2, self.attention = TimeResBlock(8, 16, 16, scale_shift), attention(16)
        self.u2, self.up = TimeResBlock(16, 8, 16, scale_shift), nn.Conv2d(8, 8, 3, padding=1)
        self.u1 = TimeResBlock(16, 8, 16, scale_shift)
        self.last = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x, timesteps):
        emb = self.time(timestep_embedding(timesteps, 8).to(x.dtype))
        h = self.first(x)
        h1 = self.d1(h, emb)
        h = self.attention(self.d2(self.down(h1), emb))
        h = self.up(F.interpolate(self.u2(h, emb), scale_factor=2, mode="nearest"))
        return self.last(self.u1(torch.cat([h, h1], dim=1), emb))


class ModulatedBlock(nn.Module):
    """DiT: shift, scale and gate of a condition (adaLN-Zero)."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(approximate="tanh"), nn.Linear(24, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def attend(self, x):
        B, N, C = x.shape
        q, k, v = (
            self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attend(
            self.norm1(x) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1)
        )
        return x + gate2.unsqueeze(1) * self.mlp(
            self.norm2(x) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1)
        )


class DiT(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.x_embedder, self.y_embedder = nn.Conv2d(3, width, 4, 4), nn.Embedding(6, width)
        self.t_embedder = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, width))
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(2))
        self.norm_final, self.linear = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 48)

    def forward(self, x, t, y):
        x = self.x_embedder(x).flatten(2).transpose(1, 2)
        c = self.t_embedder(timestep_embedding(t, 8).to(x.dtype)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x = self.linear(self.norm_final(x)).reshape(x.shape[0], 4, 4, 4, 4, 3)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], 3, 16, 16)


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.fc_mu, self.fc_var, self.decoder_input = nn.Linear(256, 6), nn.Linear(256, 6), nn.Linear(6, 256)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()
        )

    def forward(self, x):
        hidden = self.encoder(x)
        mu, log_var = self.fc_mu(hidden), self.fc_var(hidden)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu) if self.training else mu
        return self.decoder(self.decoder_input(z).view(-1, 16, 4, 4)), mu, log_var


class DcganGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(6, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z):
        return self.main(z)


class StyledGenerator(nn.Module):
    """AdaIN: instance norms scaled and shifted by a style, from a learnt constant."""

    def __init__(self):
        super().__init__()
        self.mapping = nn.Sequential(
            nn.Linear(6, 12), nn.LeakyReLU(0.2), nn.Linear(12, 12), nn.LeakyReLU(0.2)
        )
        self.const = nn.Parameter(torch.randn(1, 12, 4, 4))
        self.conv1, self.style1 = nn.Conv2d(12, 10, 3, padding=1), nn.Linear(12, 20)
        self.conv2, self.style2, self.rgb = (
            nn.Conv2d(10, 8, 3, padding=1),
            nn.Linear(12, 16),
            nn.Conv2d(8, 3, 1),
        )

    def modulate(self, x, style):
        gamma, beta = style.unsqueeze(2).unsqueeze(3).chunk(2, 1)
        return gamma * F.instance_norm(x) + beta

    def forward(self, z):
        w = self.mapping(z)
        x = F.leaky_relu(
            self.modulate(self.conv1(self.const.expand(z.shape[0], -1, -1, -1)), self.style1(w)), 0.2
        )
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        return self.rgb(F.leaky_relu(self.modulate(self.conv2(x), self.style2(w)), 0.2))


class Pix2Pix(nn.Module):
    """A U-Net by recursion, each level around the next."""

    def __init__(self):
        super().__init__()
        inner = UnetLevel(16, 24, None)
        self.model = UnetLevel(8, 16, inner, outer=3)

    def forward(self, x):
        return self.model(x)


class UnetLevel(nn.Module):
    def __init__(self, outer_nc, inner_nc, submodule, outer=None):
        super().__init__()
        self.outermost = outer is not None
        down = nn.Conv2d(outer or outer_nc, inner_nc if not outer else outer_nc, 4, 2, 1, bias=False)
        width = inner_nc if not outer else outer_nc
        if outer:
            submodule = UnetLevel(outer_nc, inner_nc, submodule)
        feeds = width if submodule is None else 2 * width
        up = nn.ConvTranspose2d(feeds, outer or outer_nc, 4, 2, 1, bias=False)
        layers = [nn.LeakyReLU(0.2), down] if not outer else [down]
        layers += [submodule] if submodule is not None else []
        layers += [nn.ReLU(), up, nn.Tanh() if outer else nn.BatchNorm2d(outer_nc)]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class ResidualDense(nn.Module):
    """ESRGAN: dense convolutions whose last is added with a weight of 0.2."""

    def __init__(self, nf=8, gc=6):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(nf, gc, 3, padding=1), nn.Conv2d(nf + gc, gc, 3, padding=1)
        self.conv3 = nn.Conv2d(nf + 2 * gc, nf, 3, padding=1)

    def forward(self, x):
        x1 = F.leaky_relu(self.conv1(x), 0.2)
        x2 = F.leaky_relu(self.conv2(torch.cat((x, x1), 1)), 0.2)
        return self.conv3(torch.cat((x, x1, x2), 1)) * 0.2 + x


class Esrgan(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.trunk = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Sequential(ResidualDense(), ResidualDense()),
        )
        self.trunk_conv, self.up, self.last = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x):
        fea = self.first(x)
        fea = fea + self.trunk_conv(self.trunk(fea))
        return self.last(F.leaky_relu(self.up(F.interpolate(fea, scale_factor=2, mode="nearest")), 0.2))


class NafBlock(nn.Module):
    """NAFNet: halves multiply each other in place of an activation."""

    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.sca, self.conv3 = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.conv4, self.conv5 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.beta, self.gamma = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))

    def gate(self, x):
        x1, x2 = x.chunk(2, dim=1)
        return x1 * x2

    def forward(self, x):
        y = self.gate(self.conv2(self.conv1(x)))
        y = x + self.conv3(y * self.sca(F.adaptive_avg_pool2d(y, 1))) * self.beta
        return y + self.conv5(self.gate(self.conv4(y))) * self.gamma


class Naf(nn.Module):
    def __init__(self):
        super().__init__()
        self.intro, self.body, self.ending = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Sequential(NafBlock(8), NafBlock(8)),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x):
        return self.ending(self.body(self.intro(x))) + x


class Coupling(nn.Module):
    """RealNVP: an affine map of one half by the other."""

    def __init__(self, width=8, hidden=16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width // 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x):
        a, b = x.chunk(2, -1)
        log_s, t = self.net(a).chunk(2, -1)
        return torch.cat([b * torch.tanh(log_s).exp() + t, a], -1)


def _draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


STEPS, CLASSES = torch.tensor([3, 7]), torch.tensor([1, 4])
GENERATORS = {
    "diffusion-unet": (DiffusionUNet, (IMAGE, STEPS)),
    "diffusion-unet-added": (lambda: DiffusionUNet(scale_shift=False), (IMAGE, STEPS)),
    "dit": (DiT, (IMAGE, STEPS, CLASSES)),
    "vae": (Vae, IMAGE),
    "dcgan": (DcganGenerator, _draw(2, 6, 1, 1)),
    "stylegan": (StyledGenerator, _draw(2, 6)),
    "pix2pix": (Pix2Pix, IMAGE),
    "esrgan": (Esrgan, IMAGE),
    "nafnet": (Naf, IMAGE),
    "realnvp": (lambda: nn.Sequential(Coupling(), Coupling()), _draw(2, 8)),
}
