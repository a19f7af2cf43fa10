from .batches import Batch as Batch
from .errors import DataError as DataError
from .errors import InputError as InputError
from .errors import ModelError as ModelError
from .errors import PrunekitError as PrunekitError
from .masks import Masks as Masks
from .merge import merge_layers as merge_layers
from .packing import pack as pack
from .packing import unpack as unpack
from .pruning import Pruned as Pruned
from .pruning import Session as Session
from .pruning import prune as prune
from .recipe import Recipe as Recipe
from .saving import Architecture as Architecture
from .saving import load_masks as load_masks
from .saving import load_pretrained as load_pretrained
from .saving import load_session as load_session
from .saving import save_pretrained as save_pretrained
from .saving import save_session as save_session
from .task import Task as Task
from .training import Loop as Loop
from .training import Training as Training
from .training import train as train

__version__: str
