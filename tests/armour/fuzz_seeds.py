"""One small valid sample, or a few, of every format that `jaxrec data import` reads."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz_mutate import Files


@dataclasses.dataclass(frozen=True)
class Seed:
    """Files, and how a reader is pointed at them."""

    files: Files
    entry: str = ""
    """What `path` names inside the folder; the folder itself by default."""
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of the reader; a text that starts with @ is a file of the folder."""


CSV = (
    "user_id,item_id,timestamp,rating,kind\n"
    "u1,a,1500000000,4.5,view\nu1,b,1500000100,3,buy\nu2,a,1500000200,,view\n"
    'u2,"c, d",1500000300,1,view\nu3,b,1500000400,5,buy\n'
)
ITEM_CSV = 'item_id,title,price\na,Ball,1.5\nb,"Big, red",2\n"c, d",Cup,\nz,Unused,9\n'


def seeds() -> dict[str, tuple[Seed, ...]]:
    """Samples by the name of the format."""
    return {
        "amazon": _amazon(),
        "canonical": (_canonical(),),
        "grid": _grid(),
        "jdsearch": (_jdsearch(),),
        "kuairand": _kuairand(),
        "lcrec": _lcrec(),
        "mind": (_mind(),),
        "minionerec": _minionerec(),
        "movielens": (_movielens(),),
        "p5": _p5(),
        "recbole": (_recbole(),),
        "retailrocket": _retailrocket(),
        "sequences": _sequences(),
        "tables": _tables(),
        "trivago": _trivago(),
    }


def _tables() -> tuple[Seed, ...]:
    times = "user;video;when\n1;7;2019-01-01T10:00:00Z\n1;8;2019-01-02T11:00:00Z\n"
    day = "user,item,day\n1,7,01.02.2019 10:30\n2,7,02.02.2019 11:00\n"
    lines = [
        {"user": 1, "item": "a", "ts": 1_500_000_000_000, "extra": [1]},
        {"user": 2, "item": "b", "ts": 1_500_000_100_000, "extra": None},
    ]
    rich = {
        "event": "kind",
        "value": "rating",
        "history_events": ("buy",),
        "grades": ("view", "buy"),
    }
    pages = (
        "user\titem\ttimestamp\tpage\tplace\tevent\nu1\ta\t1\tp1\t0\texposed\n"
        "u1\tb\t1\tp1\t1\tclick\nu2\ta\t2\tp2\t0\texposed\n"
    )
    paged = {
        "page": "request:page",
        "position": "place",
        "event": "event",
        "grades": ("exposed", "click"),
    }
    return (
        Seed({"log.csv": CSV.encode()}, "log.csv"),
        Seed(
            {"log.csv": CSV.encode(), "items.csv": ITEM_CSV.encode()},
            "log.csv",
            {"items": "@items.csv", **rich},
        ),
        Seed(
            {"log.txt": times.encode()},
            "log.txt",
            {"separator": ";", "item": "video", "time": "when", "all_items": True},
        ),
        Seed({"log.csv": day.encode()}, "log.csv", {"time": "day", "time_unit": "%d.%m.%Y %H:%M"}),
        Seed({"log.tsv": pages.encode()}, "log.tsv", paged),
        Seed({"log.jsonl": _lines(lines)}, "log.jsonl"),
        Seed(
            {
                "log.csv.gz": gzip.compress(CSV.encode()),
                "i.jsonl": _lines([{"item": "a", "t": "x"}]),
            },
            "log.csv.gz",
            {"items": "@i.jsonl", "time": "none"},
        ),
        Seed(
            {"log.parquet": _parquet(user=["1", "2"], item=[3, 4], time=[5.0, 6.5])}, "log.parquet"
        ),
        Seed({"a-1.csv": CSV.encode(), "a-2.csv": CSV.encode()}, "a-*.csv", {"time_unit": "s"}),
    )


def _recbole() -> Seed:
    return Seed(
        {
            "x.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            b"1\t7\t4.5\t1500000000\n1\t8\t3\t1500000001.5\n2\t7\t1\t1500000002\n",
            "x.item": b"item_id:token\tname:token_seq\tclass:token_seq\tyear:float\n"
            b"7\tToy Story\tA B\t1995\n8\tHeat\tC\t1996\n9\tNobody\t\t\n",
        },
        flags={"name": "x", "item_columns": (("name", "title"),)},
    )


def _movielens() -> Seed:
    return Seed(
        {
            "ml-100k.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            b"1\t7\t4\t880000000\n2\t8\t3\t880000001\n",
            "ml-100k.item": b"item_id:token\tmovie_title:token_seq\trelease_year:token\t"
            b"class:token_seq\n7\tToy Story\t1995\tA B\n8\tHeat\t1996\tC\n",
        }
    )


def _sequences() -> tuple[Seed, ...]:
    files = {
        "sequences.txt": b"u1 a b c\nu2 b a\n\n",
        "items.jsonl": _lines(
            [
                {"item_id": "a", "title": "Ball", "categories": [["Toys", "Balls"]], "price": 3},
                {"item_id": "b", "title": "Cup", "price": None},
                {"item_id": "c", "price": 2.5},
            ]
        ),
    }
    timed = {**files, "timestamps.txt": b"u1 1500000000 1500000001 1500000002\nu2 5 6\n"}
    return Seed(files), Seed(timed)


def _canonical() -> Seed:
    from jaxrec.data.dataset import write_dataset

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "d"
        write_dataset(
            place,
            {
                "user": ["u1", "u1", "u2"],
                "item": ["a", "b", "a"],
                "timestamp": [1, 2, 3],
                "event": ["view", "buy", "view"],
                "value": [1.0, None, 2.5],
            },
            {"item": ["a", "b"], "title": ["Ball", "Cup"]},
            name="t",
            source="test",
            licence="none",
            history_events=("buy",),
            grades=("view", "buy"),
        )
        return Seed({path.name: path.read_bytes() for path in sorted(place.iterdir())})


def _amazon() -> tuple[Seed, ...]:
    old = [
        {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1400000000},
        {"reviewerID": "A2", "asin": "B2", "overall": 3.0, "unixReviewTime": 1400086400},
    ]
    new = [
        {
            "user_id": "U1",
            "parent_asin": "P1",
            "asin": "B1",
            "rating": 4.0,
            "timestamp": 1600000000123,
        },
        {
            "user_id": "U2",
            "parent_asin": "P2",
            "asin": "B9",
            "rating": 1.0,
            "timestamp": 1600000100456,
        },
    ]
    meta = [{"asin": "B1", "title": "Ball", "categories": [["Toys"]], "price": 2.5}]
    meta_new = [{"parent_asin": "P1", "title": "Cup", "features": ["a", "b"], "price": "None"}]
    literals = "".join(f"{row!r}\n" for row in meta).encode()
    table = (
        b"user_id,parent_asin,rating,timestamp\nU1,P1,4.0,1600000000123\nU2,P2,1.0,1600000100456\n"
    )
    return (
        Seed(
            {"r.json": _lines(old), "meta_r.json.gz": gzip.compress(literals)},
            "r.json",
            {"metadata": "@meta_r.json.gz"},
        ),
        Seed(
            {"r.jsonl.gz": gzip.compress(_lines(new)), "m.jsonl": _lines(meta_new)},
            "r.jsonl.gz",
            {"metadata": "@m.jsonl", "min_rating": 2.0},
        ),
        Seed({"r.csv": table}, "r.csv"),
        Seed(
            {"r.csv": b"A1,B1,5.0,1400000000\nA2,B2,3.0,1400086400\n"},
            "r.csv",
            {"release": "2014"},
        ),
    )


def _grid() -> tuple[Seed, ...]:
    users = _parquet(user_id=[1, 2], sequence_data=[[3, 4, 5], [4, 3]])
    short = _parquet(user_id=[1], sequence_data=[[3, 4]])
    items = _parquet(id=[3, 4, 5], text=["a", "b", None], embedding=[[0.1], [0.2], [0.3]])
    return (
        Seed(
            {
                "training/0.parquet": short,
                "testing/0.parquet": users,
                "items/0.parquet": items,
            }
        ),
        Seed({"users.parquet": users, "things.parquet": items}),
    )


def _jdsearch() -> Seed:
    columns = (
        "query\tcandidate_wid_list\tcandidate_label_list\thistory_qry_list\thistory_wid_list\t"
        "history_type_list\thistory_time_list\n"
    )
    product = "\t".join(["7", "4\x185", "1", "2", *map(str, range(8)), "9"])
    return Seed(
        {
            "release_data.txt": (
                columns + "1\x182\t7_8_9\t0.0_1.0_3.0\t1_2\t8_9\tCLICK_ORD\t0_35_4\n"
                "3\t8_7\t2.0_0.0\t\t\t\t0\n"
            ).encode(),
            "product_data.txt": (product + "\n" + product.replace("7", "8", 1) + "\n").encode(),
        }
    )


def _kuairand() -> tuple[Seed, ...]:
    names = [
        "user_id",
        "video_id",
        "date",
        "hourmin",
        "time_ms",
        "is_click",
        "is_like",
        "is_follow",
        "is_comment",
        "is_forward",
        "is_hate",
        "long_view",
        "play_time_ms",
        "duration_ms",
        "profile_stay_time",
        "comment_stay_time",
        "is_profile_enter",
        "is_rand",
        "tab",
    ]
    rows = [
        (1, 7, 20220421, 800, 1650499200000, 1, 0, 0, 0, 0, 0, 1, 9000, 8000, 0, 0, 0, 0, 1),
        (1, 8, 20220421, 800, 1650499201000, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 1),
        (2, 7, 20220421, 900, 1650502800000, 1, 1, 0, 0, 0, 0, 0, 500, 8000, 0, 0, 1, 1, 0),
    ]
    text = "\n".join(",".join(map(str, row)) for row in (names, *rows)) + "\n"
    features = "video_id,author_id,video_type,upload_dt,upload_type,video_duration,tag\n"
    features += '7,3,NORMAL,2022-01-01,Web,8000,"1,2"\n8,4,AD,2022-01-02,Web,,3\n'
    table = _parquet(**{name: [row[at] for row in rows] for at, name in enumerate(names)})
    past = _parquet(
        user_id=[1, 2],
        watch_seq=[[5, 6], [7]],
        long_watch_seq=[[5], []],
        like_seq=[[], [7]],
        last_time_ms=[1650000000000, 1650000000000],
    )
    return (
        Seed(
            {"log_standard_a.csv": text.encode(), "video_features_basic_a.csv": features.encode()}
        ),
        Seed(
            {"data/log_random_a.csv": text.encode()}, flags={"page": "second,max:2", "random": True}
        ),
        Seed(
            {"exposures.parquet": table, "user_sequences.parquet": past}, flags={"page": "day:+8"}
        ),
    )


def _lcrec() -> tuple[Seed, ...]:
    inter = {"0": [1, 2, 3], "1": [2, 1]}
    item = {str(n): {"title": f"t{n}", "brand": "b", "tags": ["x", "y"]} for n in range(1, 4)}
    return (
        Seed({"T.inter.json": _json(inter), "T.item.json": _json(item)}),
        Seed({"T.inter.json": _json(inter)}, flags={"name": "T"}),
    )


def _mind() -> Seed:
    return Seed(
        {
            "behaviors.tsv": b"1\tU1\t11/12/2019 2:14:46 PM\tN1 N2\tN3-1 N4-0\n"
            b"2\tU1\t11/13/2019 9:00:00 AM\tN1 N2\tN4-0 N2-1\n"
            b"3\tU2\t11/12/2019 2:15:00 PM\t\tN1-0\n",
            "news.tsv": b'N1\tsports\tgolf\tA "title"\tAbstract\thttps://x\t'
            b'[{"Label": "Golf", "Type": "C", "WikidataId": "Q1"}]\t[]\n'
            b"N2\tnews\tlocal\tB\t\thttps://x\t[]\t[]\nN3\tnews\tx\tC\t\t\t[]\t\n"
            b"N4\tnews\tx\tD\tE\t\t[]\t[]\n",
        }
    )


def _minionerec() -> tuple[Seed, ...]:
    head = (
        "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
    )
    row = "A1,\"['t0', 't1']\",t2,\"['0', '1']\",2,\"['<a_1>', '<a_2>']\",<a_3>\n"
    more = "A1,\"['t0', 't1', 't2']\",t0,\"['0', '1', '2']\",0,\"['']\",<a_3>\n"
    item = {str(n): {"title": f"t{n}", "description": ["d"], "brand": ""} for n in range(3)}
    lines = [{"user": "A1", "items": [0, 1, 2]}, {"user": "A2", "items": [2, 0]}]
    return (
        Seed(
            {
                "train/T_5_2016.csv": (head + row).encode(),
                "test/T_5_2016.csv": (head + more).encode(),
                "index/T.item.json": _json(item),
            }
        ),
        Seed(
            {
                "T.train.csv.gz": gzip.compress((head + row + more).encode()),
                "T.item.json": _json(item),
            }
        ),
        Seed({"T.sequences.jsonl": _lines(lines), "T.item.json": _json(item)}),
    )


def _p5() -> tuple[Seed, ...]:
    maps = {
        "user2id": {"A1": "1", "A2": "2"},
        "item2id": {"B1": "1", "B2": "2"},
        "id2user": {"1": "A1", "2": "A2"},
        "id2item": {"1": "B1", "2": "B2"},
    }
    meta = (
        f"{ {'asin': 'B1', 'title': 'Ball', 'categories': [['Toys']], 'price': 2.5}!r}\n".encode()
    )
    files = {"sequential_data.txt": b"1 1 2 1\n2 2 1\n"}
    return (
        Seed({**files, "datamaps.json": _json(maps), "meta.json.gz": gzip.compress(meta)}),
        Seed({**files, "datamaps.json": _json(maps), "meta.json": meta}),
        Seed(files),
    )


def _retailrocket() -> tuple[Seed, ...]:
    events = (
        b"timestamp,visitorid,event,itemid,transactionid\n1433221332117,1,view,7,\n"
        b"1433221432117,1,addtocart,7,\n1433221532117,2,transaction,8,4000\n"
    )
    properties = b"timestamp,itemid,property,value\n1433000000000,7,categoryid,1338\n"
    train = b"user,item,behavior,timestamp\n1,7,view,1433221332\n1,8,cart,1433221333\n2,7,buy,5\n"
    return (
        Seed({"events.csv": events, "item_properties_part1.csv": properties}),
        Seed({"train_events.csv": train, "test_buy.csv": b"user,item\n1,7\n2,8\n"}),
    )


def _trivago() -> tuple[Seed, ...]:
    log = (
        "user_id,session_id,timestamp,step,action_type,reference,platform,city,device,"
        "current_filters,impressions,prices\n"
        "U1,S1,1541037460,1,interaction item image,7,AU,Sydney,mobile,,,\n"
        "U1,S1,1541037522,2,clickout item,8,AU,Sydney,mobile,,7|8|9,100|50|70\n"
        "U2,S2,1541037600,1,clickout item,,DE,Berlin,desktop,,7|9,10|20\n"
    )
    lines = [
        {
            "user": "U1",
            "session": "S1",
            "timestamp": 1541037522,
            "step": 2,
            "exposed": [7, 8, 9],
            "prices": [100, 50, 70],
            "clicked": 8,
            "engaged_since_last_clickout": {"7": {"interaction item image": 2}},
            "platform": "AU",
            "city": "Sydney",
            "device": "mobile",
        }
    ]
    return (
        Seed({"train.csv": log.encode(), "item_metadata.csv": b"item_id,properties\n7,WiFi|Bar\n"}),
        Seed({"log.jsonl": _lines(lines)}, "log.jsonl"),
    )


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(**columns: Any) -> bytes:
    import polars as pl

    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


SEEDS = functools.cache(seeds)
