"""mBART (Liu et al., 2020; Tang et al., 2020): BART for many languages, with the norms in front."""

from functools import partial

from polyformer.families.bart import Layout, read, weight_table, write
from polyformer.families.base import Family

LAYOUT = Layout("MBart", "pre", final_norm=True, start=0)

family = Family("mbart", tuple(LAYOUT.tasks), partial(read, layout=LAYOUT), partial(write, layout=LAYOUT), weight_table)
