"""Benchmarks on the user's machine: layers against other implementations, and whole networks.

`cases`, `contenders`, `checking`, `layer_bench` and `layer_report` implement `lambdanets bench op`;
`networks`, `network_bench` and `network_report` implement `lambdanets bench models`. Both commands share
`timing`, `memory`, `records` and `report`. Every row has its provenance, and all tables and figures are made
from rows alone.
"""

from .cases import CASES as CASES
from .cases import GROUPS as GROUPS
from .cases import Case as Case
from .cases import select as select
from .contenders import CONTENDERS as CONTENDERS
from .contenders import Contender as Contender
from .layer_bench import measure_layers as measure_layers
from .layer_report import LEGEND as LEGEND
from .layer_report import LayerRecord as LayerRecord
from .layer_report import draw_layers as draw_layers
from .layer_report import layer_markdown as layer_markdown
from .layer_report import layer_tables as layer_tables
from .layer_report import read_layers as read_layers
from .layer_report import write_layers as write_layers
from .network_bench import Limits as Limits
from .network_bench import check_networks as check_networks
from .network_bench import measure_networks as measure_networks
from .network_report import MODELS_REPORT as MODELS_REPORT
from .network_report import NamedFigure as NamedFigure
from .network_report import NetworkReport as NetworkReport
from .networks import Measured as Measured
from .networks import NetworkRecord as NetworkRecord
from .networks import NetworkSpec as NetworkSpec
from .networks import Published as Published
from .networks import compute_cost as compute_cost
from .networks import parse_size as parse_size
from .networks import read_networks as read_networks
from .networks import select_networks as select_networks
from .networks import write_networks as write_networks
from .records import Machine as Machine
from .records import Provenance as Provenance
from .records import provenance as provenance
from .report import Table as Table
from .report import provenance_line as provenance_line
from .timing import CheckError as CheckError
from .timing import DeviceLost as DeviceLost
from .timing import Settings as Settings
from .timing import measure_machine as measure_machine
