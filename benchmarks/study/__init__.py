"""The accuracy study: operators in one trunk, trained with one recipe, equal epochs and several seeds.

A cell is one contender with one seed. Each is trained by `lambdanets.train` in a process of its own
(`worker`), which `running` starts; its result becomes a row of cells.csv (`records`), from which alone
`report` and `figures` draw. `settings` holds what all cells share, `trunks` the networks as data.
"""

from .figures import draw_figures as draw_figures
from .records import CellRecord as CellRecord
from .records import read as read
from .records import restore as restore
from .report import markdown as markdown
from .report import summary_table as summary_table
from .running import Estimate as Estimate
from .running import Failure as Failure
from .running import Progress as Progress
from .running import epochs_within as epochs_within
from .running import estimate as estimate
from .running import run as run
from .settings import Cell as Cell
from .settings import Study as Study
from .settings import StudyFiles as StudyFiles
from .settings import cells_of as cells_of
from .settings import check_engine as check_engine
from .settings import count_parameters as count_parameters
from .settings import find_images as find_images
from .settings import joined as joined
from .settings import load_study as load_study
from .settings import settle as settle
from .settings import with_precision as with_precision
from .trunks import BASELINE as BASELINE
from .trunks import TRUNKS as TRUNKS
from .trunks import StudyContender as StudyContender
from .trunks import Trunk as Trunk
