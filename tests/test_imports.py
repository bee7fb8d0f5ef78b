"""No module imports itself through others, not even by an import inside a function."""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import grimp

PACKAGES = ("cluster", "data_shards", "detectors", "pipelines")


def cycles(graph: grimp.ImportGraph) -> Iterator[list[str]]:
    """Yield cycles, each as modules of which one imports the next, and cut each by one import until none is left."""
    while True:
        imports = {one: sorted(graph.find_modules_directly_imported_by(one)) for one in sorted(graph.modules)}
        try:
            TopologicalSorter(imports).prepare()
        except CycleError as error:
            cycle = error.args[1][::-1]  # it names the imported module first
            yield cycle
            graph.remove_import(importer=cycle[-2], imported=cycle[-1])
        else:
            return


def test_there_are_no_import_cycles() -> None:
    # Imports under TYPE_CHECKING bind nothing at run time.
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    found = [" → ".join(cycle) for cycle in cycles(graph)]
    assert not found, "Move what both need to a module below, or pass it as an argument:\n" + "\n".join(found)


def test_a_cycle_is_named_in_the_order_of_its_imports() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in ("ab", "bc", "ca", "cd", "de", "ed"):
        graph.add_import(importer=importer, imported=imported)
    found = [cycle[:-1] for cycle in cycles(graph)]
    assert sorted("".join(sorted(cycle)) for cycle in found) == ["abc", "de"]
    three = next(cycle for cycle in found if len(cycle) == 3)
    assert "".join(three) in ("abc", "bca", "cab")
    assert list(cycles(graph)) == []
