"""All numbers of a default run in the form that the docs want: python training/docs_numbers.py WORKTREE [READABLE.json]
(PYTHONPATH=WORKTREE; reads WORKTREE/data/results/miniature; READABLE.json: `python -m sr4g_utils.evaluation.readable`)."""
import sys; sys.path.pop(0)  # this folder
import json, pathlib
root = pathlib.Path(sys.argv[1]).resolve()
sys.path[:0] = [str(root), str(root / "tests")]
import test_docs as t
import re
minus = lambda s: re.sub(r"-(?=\d)(?<![a-z]-)", "−", s)
def show(title, lines): print("\n## " + title); [print(minus(x)) for x in lines]
def tell(title, make):
    try: show(title, make())
    except Exception as e: print(f"\n## {title}: {type(e).__name__}: {e}")
tell("README, the table", t.readme_lines)
tell("results.md, The protocol's table", t.protocol_lines)
def changed():
    page = [t.flat(l) for l in t.PAGES["results.md"].splitlines()]; out = []
    for start, (now, verdict) in t.changed_cells().items():
        line = [l for l in page if l.startswith(start)]
        if not line: out.append(f"NO ROW YET: {start} … | {now} {verdict} |"); continue
        before = line[0].strip("| ").split(" | ")[2] if len(line[0].split("|")) > 5 else "–"
        out.append(f"{start} {before} | {now} {verdict} | {'new' if before.strip() == '–' else 'no' if before.endswith(' ' + verdict) else 'yes'} |")
    return out
tell("results.md, What changed", changed)
def rest():
    lines = set(t.protocol_lines()); return [x for x in t.default_facts() if x not in lines]
tell("results.md, the default run: cells and sentences, in the page's order", rest)
def verdicts():
    by = {}
    for r in t.rows("miniature", "claims"): by.setdefault(r["verdict"], {})[r["claim"][0]] = 1
    return [f"{', '.join(c)}: {v}" for v, c in by.items()]
tell("verdicts of the six claims (results.md sentence; paper.md, README)", verdicts)
def score():
    out = []
    for objects in ("seen", "unseen", "all"):
        for model in ("base", "fine-tuned"):
            r = {x["metric"]: x for x in t.rows("miniature", "scores", relation="all", objects=objects, model=model)}
            out.append(f"{objects} {model}: " + ", ".join(f"{m} {r[m]['value']:.1f} [{r[m]['low']:.1f}, {r[m]['high']:.1f}]" for m in ("OA", "VISOR", "VISOR_Cond")) + f"; chance {r['VISOR_Cond']['chance']:.1f}")
    d = t.files.read_json(t.RESULTS / "miniature" / "scores.json")
    out += [f"detector {d['about']['detector']}", f"judges {d['about'].get('judges')}", f"seed {d['about']['seed']}, prompts {d['about']['prompts']['sha256'][:12]}"]
    out.append(f"claims rows: {len(t.rows('miniature', 'claims'))}")
    return out
tell("scores by model and objects, for sentences (no test names them any more)", score)
def training():
    s = t.files.read_json(t.ROOT / "data" / "models" / "training.json")["scores"]
    return [f"{k}: {v:.3f}" if isinstance(v, float) else f"{k}: {v}" for k, v in s.items()]
tell("miniature.md: AP50 and both found (training.json)", training)
def curve():
    from sr4g_utils.finetuning import log
    out = []
    for name, (loss, c, drawn) in log.of_base(t.ROOT / "data" / "models" / "tiny-sd").items():
        out += [name, c.pivot(index="images", columns="judge", values="both_found").round(1).to_string(), str(drawn), loss.iloc[:: max(1, len(loss) // 12)].round(3).to_string()]
    return out or ["log.of_base has nothing"]
tell("results.md, the learning curve", curve)
if len(sys.argv) > 2:
    r = json.loads(pathlib.Path(sys.argv[2]).read_text()); f = r["both found"]; J = list(f["lists"])
    print("\n## results.md, the bars", r["pictures"], "pictures; columns", J)
    print("| both things found in the base's pictures (%) | " + " | ".join(f"{f['lists'][j]:.1f}" for j in J) + " |")
    print("| both things found in drawn scenes of two things (%) | " + " | ".join(f"{f['drawn scenes'][j]:.1f}" for j in J) + " |")
    print("| their ratio, at least 0.9 | " + " | ".join(f"{f['lists'][j] / f['drawn scenes'][j]:.2f}" for j in J) + " |")
    print("| names found that the prompt does not say (%), at most 2 | " + " | ".join(f"{r['names not said'][j]:.1f}" if j in r["names not said"] else "–" for j in J) + " |")
    for k, v in r["agreement"].items(): print(f"| {k} | {v['both found']:.2f} | {v['relation']:.2f} |")
    for k, v in r["what the relation word gains"].items(): print("innocence,", k, "{:+.1f} [{:+.1f}, {:+.1f}]".format(*v).replace("-", "−"))
