/* What /proc tells of a process and everything below it: CPU time and resident memory. */
#ifndef BENCH_PROCESS_H
#define BENCH_PROCESS_H

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct usage {
    int processes;
    double user, system;     /* seconds, children that have ended included */
    long rss_kb, peak_kb;    /* sums over the processes; shared pages count in each */
    long pss_kb;             /* shared pages counted once; -1 where the kernel does not say */
};

struct proc_row {
    long pid, ppid;
    double user, system;
    int inside;
};

static int proc_stat(long pid, struct proc_row *row) {
    char path[64], text[2048], state;
    unsigned long ut, st;
    long cut, cst;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    char *rest = strrchr(text, ')'); /* the name before it may hold anything */
    if (!rest || sscanf(rest + 1,
                        " %c %ld %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %ld %ld",
                        &state, &row->ppid, &ut, &st, &cut, &cst) != 6)
        return 0;
    double tick = (double)sysconf(_SC_CLK_TCK);
    row->pid = pid;
    row->user = (double)(ut + (unsigned long)cut) / tick;
    row->system = (double)(st + (unsigned long)cst) / tick;
    row->inside = 0;
    return 1;
}

static long proc_field_kb(long pid, const char *file, const char *field) {
    char path[64], line[256];
    long value = -1;
    size_t n = strlen(field);
    snprintf(path, sizeof path, "/proc/%ld/%s", pid, file);
    FILE *f = fopen(path, "r");
    if (!f)
        return -1;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, field, n) == 0 && line[n] == ':') {
            value = strtol(line + n + 1, NULL, 10);
            break;
        }
    fclose(f);
    return value;
}

/* Fills `u` for `root` and its descendants; 0 when `root` is not there. `memory`: read that too,
 * which takes longer than the CPU time. */
static int process_usage(long root, int memory, struct usage *u) {
    static struct proc_row *rows;
    static size_t cap;
    size_t count = 0;
    memset(u, 0, sizeof *u);
    DIR *dir = opendir("/proc");
    if (!dir)
        return 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (!isdigit((unsigned char)e->d_name[0]))
            continue;
        if (count == cap) {
            cap = cap ? cap * 2 : 256;
            rows = realloc(rows, cap * sizeof *rows);
            if (!rows)
                abort();
        }
        if (proc_stat(strtol(e->d_name, NULL, 10), &rows[count]))
            count++;
    }
    closedir(dir);
    for (size_t i = 0; i < count; i++)
        rows[i].inside = rows[i].pid == root;
    for (int found = 1; found;) {
        found = 0;
        for (size_t i = 0; i < count; i++) {
            if (rows[i].inside)
                continue;
            for (size_t k = 0; k < count; k++)
                if (rows[k].inside && rows[k].pid == rows[i].ppid) {
                    rows[i].inside = found = 1;
                    break;
                }
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (!rows[i].inside)
            continue;
        u->processes++;
        u->user += rows[i].user;
        u->system += rows[i].system;
        if (!memory)
            continue;
        long rss = proc_field_kb(rows[i].pid, "status", "VmRSS");
        long peak = proc_field_kb(rows[i].pid, "status", "VmHWM");
        long pss = proc_field_kb(rows[i].pid, "smaps_rollup", "Pss");
        u->rss_kb += rss > 0 ? rss : 0;
        u->peak_kb += peak > 0 ? peak : 0;
        u->pss_kb = pss < 0 || u->pss_kb < 0 ? -1 : u->pss_kb + pss;
    }
    return u->processes > 0;
}

#endif
