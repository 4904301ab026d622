/* ipc._core: the core for Python. Its functions are in the files beside this one, by who calls them. */
#include "view.h"

static const struct { const char *name; long value; } constants[] = {
    {"FREE", IPC_FREE}, {"READY", IPC_READY}, {"RUNNING", IPC_RUNNING}, {"STORING", IPC_STORING}, {"DONE", IPC_DONE}, {"CONDEMNED", IPC_CONDEMNED},
    {"FULL", IPC_FULL}, {"NO_ROOM", IPC_NO_ROOM}, {"TOO_LARGE", IPC_TOO_LARGE}, {"LOST", IPC_LOST}, {"STOP", IPC_STOP},
    {"DIED", IPC_DIED}, {"DEADLINE", IPC_DEADLINE}, {"KILLED", IPC_KILLED}, {"RECYCLED", IPC_RECYCLED}, {"MEMORY", IPC_MEMORY}, {"OOM", IPC_OOM}, {"UNREADY", IPC_UNREADY}, {"RESTARTED", IPC_RESTARTED}, {"CHANGED", IPC_CHANGED},
    {"STARTING", IPC_STARTING}, {"IDLE", IPC_IDLE}, {"LEAVING", IPC_LEAVING}, {"PACKED", IPC_PACKED},
    {"REPLACED", IPC_REPLACED}, {"IS_STARTING", IPC_IS_STARTING}, {"IS_IDLE", IPC_IS_IDLE}, {"IS_BUSY", IPC_IS_BUSY}, {"IS_WAITING", IPC_IS_WAITING},
    {"IS_LEAVING", IPC_IS_LEAVING}, {"TALLIES", TALLIES}, {"SLOWEST", SLOWEST},
    {"REPEATABLE", IPC_REPEATABLE}, {"CAPTURE", IPC_CAPTURE}, {"PACKED_KIND", IPC_PACKED_KIND}, {"ALIGN", IPC_ALIGN},
    {"MAX_ROWS", IPC_MAX_ROWS}, {"MAX_SLOTS", IPC_MAX_SLOTS}, {"MAX_ITEMS", IPC_MAX_ITEMS}, {"INLINE", IPC_INLINE}, {"UNIT_SIZE", IPC_UNIT_SIZE},
    {"GENERATION_MASK", (long)IPC_MASK(IPC_GENERATION_BITS)}, {"DEATHS", IPC_DEATHS}, {"FILL_RATE", (long)IPC_FILL_RATE}, {"LOOK_MS", IPC_LOOK_MS},
};

static int execute(PyObject *module) {
    PyMethodDef *const methods[] = {segment_methods, tally_methods, client_methods, worker_methods, monitor_methods};
    for (size_t k = 0; k < sizeof(methods) / sizeof(methods[0]); k++)
        if (PyModule_AddFunctions(module, methods[k]) < 0) return -1;
    for (size_t k = 0; k < sizeof(constants) / sizeof(constants[0]); k++)
        if (PyModule_AddIntConstant(module, constants[k].name, constants[k].value) < 0) return -1;
    return make_types() < 0 ? -1 : PyModule_AddObjectRef(module, "Damaged", Damaged);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};
static PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "ipc._core", .m_size = 0, .m_slots = module_slots};
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
