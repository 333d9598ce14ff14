"""SimCLR: pre-training on unlabelled slices; two augmented views of one slice should be similar."""

from torch import Tensor, nn

from ich.networks.cnn import Cnn


class SimClr(nn.Module):
    """Embeddings of a Cnn through two linear layers (Chen et al., arXiv:2002.05709, section 2.1).

    Its loss is `ich.networks.losses.nt_xent`; `Cnn.start_from` takes its state_dict.
    """

    def __init__(self, cnn: Cnn, width: int = 128) -> None:
        super().__init__()
        self.cnn = cnn
        self.projection = nn.Sequential(
            nn.Linear(cnn.embedding_size, cnn.embedding_size), nn.ReLU(), nn.Linear(cnn.embedding_size, width)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Projections [B, width] of uint8 [B, C, S, S]."""
        return self.projection(self.cnn.embed(images)[0])
