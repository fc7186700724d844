"""The tasks: each module reads one data set and says by which protocol it is scored."""

from __future__ import annotations

from pyllmc.evaluate.task import Task
from pyllmc.evaluate.tasks import cbt, enwik8, hellaswag, lambada, lm1b, ptb, text8, wikitext

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        lambada.Lambada(),
        lambada.LastToken(),
        lambada.LmEval(),
        cbt.ChildrensBookTest("CN"),
        cbt.ChildrensBookTest("NE"),
        wikitext.WikiText(2),
        wikitext.WikiText(103),
        wikitext.LmEval(),
        ptb.PennTreebank(),
        enwik8.Enwik8(),
        text8.Text8(),
        lm1b.OneBillionWords(),
        hellaswag.HellaSwag(),
        hellaswag.LmEval(),
    )
}
