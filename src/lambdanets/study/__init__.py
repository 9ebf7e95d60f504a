"""The accuracy study: one trunk, one recipe, equal epochs, several seeds; who is how good, with what error.

A room above the recipes: it trains through `lambdanets.train` as everybody does, a process for each cell.
"""

from .checking import check_engine as check_engine
from .checking import count_parameters as count_parameters
from .contenders import BASELINE as BASELINE
from .contenders import TRUNKS as TRUNKS
from .contenders import Contender as Contender
from .contenders import Trunk as Trunk
from .estimate import Estimate as Estimate
from .estimate import epochs_within as epochs_within
from .estimate import estimate as estimate
from .figures import draw_figures as draw_figures
from .records import Record as Record
from .records import read as read
from .records import restore as restore
from .report import markdown as markdown
from .report import summary_table as summary_table
from .running import Failure as Failure
from .running import Progress as Progress
from .running import run as run
from .settings import Cell as Cell
from .settings import Study as Study
from .settings import StudyFiles as StudyFiles
from .settings import cells_of as cells_of
from .settings import find_images as find_images
from .settings import joined as joined
from .settings import load_study as load_study
from .settings import settle as settle
from .settings import with_precision as with_precision
