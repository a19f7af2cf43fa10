"""The networks of the zoo can be imported here, too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "zoo"))
