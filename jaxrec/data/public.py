"""The public data sets that `jaxrec data fetch` knows: where they are, on what terms, how to read.

Every address, size and checksum was seen in a public source, which the comment beside it names;
nothing was guessed. A set whose files want a login, a click or a form is `manual`: its
instructions are printed. Sets of Amazon reviews are in `jaxrec.data.public_amazon`.
"""

from __future__ import annotations

import difflib

from jaxrec.data.errors import DataError
from jaxrec.data.public_amazon import AMAZON
from jaxrec.data.public_set import PublicFile, PublicSet, files_of_commit

MEGA, GIGA = 10**6, 10**9

_GROUPLENS = (
    "GroupLens usage licence: research with citation; no redistribution and no commercial use "
    "without permission. The README in the archive has the text."
)
_HARPER = (
    "Harper, Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5 (4), 2015. "
    "doi:10.1145/2827872"
)

# Addresses: GroupLens's own, in sisinflab/DataRec (registry/versions/movielens_*.yml, with the MD5
# that GroupLens publishes: 0e33842e24a9c977be4e0107933c0723 and c4d9eecfca2ab87c1945afe126590906).
# SHA-256: for 1M tensorflow/examples (example_generation_movielens.py) and secretflow's datasets;
# for 100K several independent downloads, two of which also state its bytes.
_MOVIELENS = (
    PublicSet(
        name="movielens-100k",
        title="100,000 film ratings by 943 users, 1997-98",
        licence=_GROUPLENS,
        citation=_HARPER,
        homepage="https://grouplens.org/datasets/movielens/100k/",
        format="tables",
        path="files/ml-100k/ratings.tsv",
        flags=("--value", "rating", "--name", "ml-100k"),
        files=(
            PublicFile(
                url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                name="ml-100k.zip",
                size=4_924_029,
                sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
                unpack_to="files",
                limit=100 * MEGA,
            ),
        ),
        prepare=(
            'awk -F\'\\t\' -v OFS=\'\\t\' \'BEGIN{print "user","item","rating","timestamp"}{$1=$1; '
            "print}' files/ml-100k/u.data > files/ml-100k/ratings.tsv",
        ),
        remark="u.data has no header, so one is added. `MovieLens100K()` in a recipe fetches the "
        "same ratings, with titles and genres, by itself.",
    ),
    PublicSet(
        name="movielens-1m",
        title="1,000,209 film ratings by 6,040 users, 2000-03, with titles and genres",
        licence=_GROUPLENS,
        citation=_HARPER,
        homepage="https://grouplens.org/datasets/movielens/1m/",
        format="tables",
        path="files/ml-1m/ratings.csv",
        flags=(
            *("--value", "rating", "--name", "ml-1m"),
            *("--items", "{folder}/files/ml-1m/movies.tsv"),
        ),
        files=(
            PublicFile(
                url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                name="ml-1m.zip",
                sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
                unpack_to="files",
                limit=200 * MEGA,
            ),
        ),
        prepare=(
            "awk -F'::' -v OFS=',' 'BEGIN{print \"user,item,rating,timestamp\"}{$1=$1; print}' "
            "files/ml-1m/ratings.dat > files/ml-1m/ratings.csv",
            "iconv -f LATIN1 -t UTF-8 files/ml-1m/movies.dat | awk -F'::' -v OFS='\\t' "
            '\'BEGIN{print "item","title","genres"}{gsub(/"/, ""); $1=$1; print}\' '
            "> files/ml-1m/movies.tsv",
        ),
        remark="The files separate columns with `::`, have no header, and the titles are Latin-1.",
    ),
)

_KUAIRAND = (
    "Gao et al. KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed "
    "Videos. CIKM 2022. doi:10.1145/3511808.3557624"
)


def _kuairand(name: str, title: str, archive: str, size: int, md5: str, limit: int) -> PublicSet:
    # Address: Zenodo record 10439422. MD5: that of the record, repeated by many public scripts that
    # check it; sizes from two that fetch by ranges. Licence: README of chongminggao/KuaiRand.
    return PublicSet(
        name=name,
        title=title,
        licence="CC BY-SA 4.0",
        citation=_KUAIRAND,
        homepage="https://kuairand.com/",
        format="kuairand",
        path=f"files/{archive.removesuffix('.tar.gz')}",
        files=(
            PublicFile(
                url=f"https://zenodo.org/records/10439422/files/{archive}",
                name=archive,
                size=size,
                md5=md5,
                unpack_to="files",
                limit=limit,
            ),
        ),
    )


# Unpacked the authors' README states 194 MB and 4.3 GB.
_KUAIRANDS = (
    _kuairand(
        *("kuairand-pure", "2.6 M exposures of 7,583 short videos to 27,285 users, 12 feedbacks"),
        *("KuaiRand-Pure.tar.gz", 47_432_272, "0820331067a3784d9691136f772b35a7", 400 * MEGA),
    ),
    _kuairand(
        *("kuairand-1k", "11.7 M exposures of 4.4 M short videos to 1,000 users, 12 feedbacks"),
        *("KuaiRand-1K.tar.gz", 1_135_436_720, "6b0b9c8222d67fcd4c676218edca3f1f", 9 * GIGA),
    ),
)


def _mind(name: str, title: str, files: tuple[PublicFile, ...]) -> PublicSet:
    # The publisher's storage refuses access since July 2024 (msnews/MIND#17); the copy that
    # recommenders-team/recommenders uses since (recommenders/datasets/mind.py) is on Hugging Face.
    # Sizes: its tests/data_validation/recommenders/datasets/test_mind.py. The ETags there are not
    # checksums. SHA-256 of the small archives: computed by several independent downloads of 2026,
    # and equal to the X-Linked-ETag that the server sends; nobody seen states those of the large.
    return PublicSet(
        name=name,
        title=title,
        licence="Microsoft Research License Terms: non-commercial research, no redistribution",
        citation=(
            "Wu et al. MIND: A Large-scale Dataset for News Recommendation. ACL 2020, 3597-3606."
        ),
        homepage="https://msnews.github.io/",
        terms="https://github.com/msnews/MIND/blob/master/MSR%20License_Data.pdf",
        format="mind",
        path="files",
        files=files,
    )


def _mind_file(archive: str, part: str, size: int, limit: int, sha256: str | None) -> PublicFile:
    return PublicFile(
        url=f"https://huggingface.co/datasets/Recommenders/MIND/resolve/main/{archive}",
        name=archive,
        size=size,
        sha256=sha256,
        unpack_to=f"files/{part}",
        limit=limit,
    )


_MINDS = (
    _mind(
        "mind-small",
        "news impressions with clicks of 50,000 users of Microsoft News, 2019, with titles",
        (
            _mind_file(
                *("MINDsmall_train.zip", "train", 52_994_575, 250 * MEGA),
                sha256="6ef97a271580b98ccfc4301ada55cc639423cb0576a78b8dcfcf74a4dbcc3194",
            ),
            _mind_file(
                *("MINDsmall_dev.zip", "dev", 30_948_560, 250 * MEGA),
                sha256="d6ce515dcaa6b6d47ddf0a326eebc8a31b84735ae410285c9882ca2a06eec669",
            ),
        ),
    ),
    _mind(
        "mind-large",
        "news impressions with clicks of 1 M users of Microsoft News, 2019, with titles",
        (
            _mind_file("MINDlarge_train.zip", "train", 531_360_717, 3 * GIGA, sha256=None),
            _mind_file("MINDlarge_dev.zip", "dev", 103_592_887, 1 * GIGA, sha256=None),
        ),
    ),
)

# Both samples are files of the repository at this commit.
_JDSEARCH_COMMIT = "0cdbfb403c2b2abb195cac50bb0c8dc49ee0f143"
_JDSEARCH_LICENCE = "CC BY-NC-SA 4.0, by the README; the repository itself is Apache-2.0"
_JDSEARCH_PAPER = (
    "Liu et al. JDsearch: A Personalized Product Search Dataset with Real Queries and Full "
    "Interactions. SIGIR 2023. doi:10.1145/3539618.3591900"
)
_OTHERS = (
    PublicSet(
        name="jdsearch",
        title="product search of JD.com: 173,831 users, 26.7 M interactions, anonymised",
        licence=_JDSEARCH_LICENCE,
        citation=_JDSEARCH_PAPER,
        homepage="https://github.com/rucliujn/JDsearch",
        format="jdsearch",
        path="JDsearch",
        manual="The home page links to a share of JD Cloud Disk and gives its password; the page "
        "there wants the JD application on a telephone. Save JDsearch.tar.gz, put it into {folder} "
        "and unpack it there: tar -xzf JDsearch.tar.gz",
    ),
    PublicSet(
        name="jdsearch-sample",
        title="a few users of JDsearch, for looking at the format",
        licence=_JDSEARCH_LICENCE,
        citation=_JDSEARCH_PAPER,
        homepage="https://github.com/rucliujn/JDsearch",
        format="jdsearch",
        files=files_of_commit(
            "rucliujn/JDsearch",
            _JDSEARCH_COMMIT,
            {
                "user_behavior_data_sample.txt": (
                    *("user_behavior_data_sample.txt", 10_765),
                    "8d7fcc201c0dae5d9b3e7bed169948eae819f002",
                ),
                "product_meta_data_sample.txt": (
                    *("product_meta_data_sample.txt", 160_429),
                    "fd77223ca66eb18bf8ee77126e46561990c94df9",
                ),
            },
        ),
    ),
    # Page and account: recpack's class RetailRocket; the files by name in many projects.
    PublicSet(
        name="retailrocket",
        title="2.76 M views, cart additions and purchases of a shop, 2015",
        licence="stated on its Kaggle page",
        citation="Retailrocket recommender system dataset, Kaggle.",
        homepage="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
        format="retailrocket",
        manual="Kaggle wants an account: open the home page, log in, press Download, and unpack "
        "the archive into {folder}. With Kaggle's program and a token: kaggle datasets download -d "
        "retailrocket/ecommerce-dataset -p {folder} --unzip. Needed: events.csv; better also "
        "item_properties_part1.csv and item_properties_part2.csv.",
    ),
    # Page: recsys.trivago.cloud/challenge/dataset; the registration: recsyschallenge.com/2019.
    PublicSet(
        name="trivago",
        title="hotel search sessions of trivago with impressions, RecSys Challenge 2019",
        licence="the terms and conditions that are accepted when registering",
        citation=(
            "Adamczak et al. Session-based Hotel Recommendations Dataset. ACM TIST 12 (1), 2020. "
            "doi:10.1145/3412379"
        ),
        homepage="https://recsys.trivago.cloud/challenge/dataset/",
        format="trivago",
        manual="Open the home page, or https://recsys2019data.trivago.com/, register, accept the "
        "terms, and put train.csv and item_metadata.csv into {folder}.",
    ),
)

SETS = (*_MOVIELENS, *_KUAIRANDS, *_MINDS, *_OTHERS, *AMAZON)
"""Every set."""


def find_set(name: str) -> PublicSet:
    """The set of a name; capitals, spaces and underscores do not matter.

    Raises:
        DataError: there is none; the message names the nearest.
    """
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    known = {each.name: each for each in SETS}
    if plain in known:
        return known[plain]
    close = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    close += [each for each in known if plain and each.startswith(plain) and each not in close][:3]
    hint = f" Perhaps you meant {' or '.join(close)}." if close else ""
    raise DataError(
        f"there is no public data set {name!r}; `jaxrec data fetch` lists all {len(SETS)}.{hint}"
    )
