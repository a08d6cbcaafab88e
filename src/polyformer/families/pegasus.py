"""PEGASUS (Zhang et al., 2020): for summaries; sinusoids and norms in front."""

from functools import partial

from polyformer.families.bart import Layout, read, weight_table, write
from polyformer.families.base import Family

LAYOUT = Layout("Pegasus", "pre", sinusoidal=True, embedding_norm=False, final_norm=True, heads=False, start=0)

family = Family(
    "pegasus", tuple(LAYOUT.tasks), partial(read, layout=LAYOUT), partial(write, layout=LAYOUT), weight_table
)
