"""What the tests of readers share."""

import pytest

from jaxrec.data.dataset import DatasetFolder, read_dataset
from jaxrec.data.datasets.sequences import SequenceFiles


@pytest.fixture(scope="session")
def beauty(shared_data, made_once) -> DatasetFolder:
    """Amazon-2014 Beauty as its reader writes it."""
    source = SequenceFiles(str(shared_data / "amazon2014-beauty"))
    return read_dataset(made_once("beauty", source.write))
