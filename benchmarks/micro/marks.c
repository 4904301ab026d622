/* For Python under callgrind: what was counted since the last time goes by this name. */
#include <valgrind/callgrind.h>

void mark(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
