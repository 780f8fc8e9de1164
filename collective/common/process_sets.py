"""Process sets, where Horovod's users import them from."""

from collective.process_sets import ProcessSet as ProcessSet
from collective.process_sets import global_process_set as global_process_set
from collective.world import add_process_set as add_process_set
from collective.world import remove_process_set as remove_process_set
