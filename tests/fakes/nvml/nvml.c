/* A stand-in for libnvidia-ml.so.1: the calls pynvml makes, answered from the text file that STOKER_FAKE_NVML names.
 *
 * The file is read again whenever it changed, so a test can change the box under a live process. As in the real library
 * the list of devices is taken at nvmlInit: a device that leaves the file later is lost, one that joins appears after
 * the next nvmlInit. `error PREFIX CODE` fails every call whose name begins with PREFIX ("*" is all): before the first
 * device for the whole box, after a device line for that device. `generation N` counts loads of the driver: once it
 * changes, every call fails until the next nvmlInit. box.py writes the file. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999 };
enum { MAX_DEVICES = 128, MAX_PROCESSES = 128, MAX_ERRORS = 32, MAX_XIDS = 32, MAX_MIG = 7, XID_EVENT = 8 };
enum { P2P_OK = 0, P2P_NOT_SUPPORTED = 5, P2P_NVLINK = 2 };

typedef unsigned long long u64;
typedef struct { char call[64]; int code; } Error;
typedef struct { char kind; unsigned pid; u64 used; } Process;
typedef struct {
    char uuid[96], name[96], bus[32];
    int parent, gpu_instance, compute_instance;
    unsigned minor, utilization, memory_utilization, temperature, power, power_limit, mig_mode, major_cc, minor_cc;
    int numa, nvlink;
    u64 total, used, reserved, energy, ecc;
    Process processes[MAX_PROCESSES];
    int process_count;
    Error errors[MAX_ERRORS];
    int error_count;
    unsigned xids[MAX_XIDS];
    int xid_count;
} Device;
typedef struct { char uuid[96]; } Handle;
typedef struct { Handle *handles[MAX_DEVICES]; int seen[MAX_DEVICES], count; } EventSet;

typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } ProcessInfo;
typedef struct { char legacy[16]; unsigned domain, bus, device, device_id, subsystem_id; char bus_id[32]; } PciInfo;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { Handle *device; u64 type, data; unsigned gpu_instance, compute_instance; } EventData;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Device devices[MAX_DEVICES];
static int device_count;
static Error errors[MAX_ERRORS];
static int error_count, file_present, initialized, generation, initialized_in;
static char driver[80];
static int cuda_version;
static FILE *current; /* stays open, so that no later file can get its inode number and pass for it */
static struct stat loaded;
static Handle *handles[4 * MAX_DEVICES];
static int handle_count;
static char listed[MAX_DEVICES][96];
static int listed_count;

static void read_word(Device *d, const char *word, const char *rest) {
    if (!strcmp(word, "driver")) { snprintf(driver, sizeof driver, "%s", rest); return; }
    if (!strcmp(word, "cuda")) { cuda_version = atoi(rest); return; }
    if (!strcmp(word, "generation")) { generation = atoi(rest); return; }
    if (!strcmp(word, "error")) {
        Error *list = d ? d->errors : errors;
        int *count = d ? &d->error_count : &error_count;
        if (*count < MAX_ERRORS && sscanf(rest, "%63s %d", list[*count].call, &list[*count].code) == 2) ++*count;
        return;
    }
    if (!d) return;
    if (!strcmp(word, "name")) snprintf(d->name, sizeof d->name, "%s", rest);
    else if (!strcmp(word, "bus")) snprintf(d->bus, sizeof d->bus, "%s", rest);
    else if (!strcmp(word, "minor")) d->minor = strtoul(rest, NULL, 10);
    else if (!strcmp(word, "memory")) sscanf(rest, "%llu %llu %llu", &d->total, &d->used, &d->reserved);
    else if (!strcmp(word, "utilization")) sscanf(rest, "%u %u", &d->utilization, &d->memory_utilization);
    else if (!strcmp(word, "temperature")) d->temperature = strtoul(rest, NULL, 10);
    else if (!strcmp(word, "power")) sscanf(rest, "%u %u", &d->power, &d->power_limit);
    else if (!strcmp(word, "energy")) d->energy = strtoull(rest, NULL, 10);
    else if (!strcmp(word, "ecc")) d->ecc = strtoull(rest, NULL, 10);
    else if (!strcmp(word, "capability")) sscanf(rest, "%u %u", &d->major_cc, &d->minor_cc);
    else if (!strcmp(word, "numa")) d->numa = atoi(rest);
    else if (!strcmp(word, "nvlink")) d->nvlink = atoi(rest);
    else if (!strcmp(word, "mig_mode")) d->mig_mode = strtoul(rest, NULL, 10);
    else if (!strcmp(word, "instance")) sscanf(rest, "%d %d", &d->gpu_instance, &d->compute_instance);
    else if (!strcmp(word, "xid") && d->xid_count < MAX_XIDS) d->xids[d->xid_count++] = strtoul(rest, NULL, 10);
    else if (!strcmp(word, "process") && d->process_count < MAX_PROCESSES) {
        Process *p = &d->processes[d->process_count];
        long long used;
        if (sscanf(rest, "%c %u %lld", &p->kind, &p->pid, &used) == 3) { p->used = (u64)used; d->process_count++; }
    }
}

static void load(void) {
    const char *path = getenv("STOKER_FAKE_NVML");
    struct stat now;
    file_present = path && !stat(path, &now);
    if (!file_present) return;
    if (current && now.st_ino == loaded.st_ino && now.st_size == loaded.st_size
        && now.st_mtim.tv_sec == loaded.st_mtim.tv_sec && now.st_mtim.tv_nsec == loaded.st_mtim.tv_nsec)
        return;
    if (current) fclose(current);
    current = fopen(path, "re");
    file_present = current && !fstat(fileno(current), &loaded);
    if (!file_present) return;
    memset(devices, 0, sizeof devices);
    device_count = error_count = generation = 0;
    cuda_version = 12040;
    snprintf(driver, sizeof driver, "550.54.15");
    char line[512], word[32];
    int whole = -1, taken;
    Device *d = NULL;
    while (fgets(line, sizeof line, current)) {
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, " %31s %n", word, &taken) != 1 || *word == '#') continue;
        int mig = !strcmp(word, "mig");
        if (!mig && strcmp(word, "device")) { read_word(d, word, line + taken); continue; }
        if (device_count == MAX_DEVICES) break;
        d = &devices[device_count];
        snprintf(d->uuid, sizeof d->uuid, "%s", line + taken);
        d->parent = mig ? whole : -1;
        d->gpu_instance = d->compute_instance = d->numa = d->nvlink = -1;
        if (!mig) whole = device_count;
        device_count++;
    }
}

static void leave(int *held) { (void)held; pthread_mutex_unlock(&mutex); }

static int enter(void) {
    pthread_mutex_lock(&mutex);
    load();
    return 0;
}

static int failure(const Error *list, int count, const char *call) {
    for (int i = 0; i < count; i++)
        if (!strcmp(list[i].call, "*") || !strncmp(call, list[i].call, strlen(list[i].call))) return list[i].code;
    return SUCCESS;
}

static int box_failure(const char *call) {
    if (!initialized) return UNINITIALIZED;
    if (!file_present || generation != initialized_in) return UNKNOWN;
    return failure(errors, error_count, call);
}

static Device *by_uuid(const char *uuid) {
    for (int i = 0; i < device_count; i++)
        if (!strcmp(devices[i].uuid, uuid)) return &devices[i];
    return NULL;
}

static int find(Handle *handle, const char *call, Device **found) {
    int code = box_failure(call);
    if (code) return code;
    if (!handle) return INVALID_ARGUMENT;
    if (!(*found = by_uuid(handle->uuid))) return GPU_IS_LOST;
    return failure((*found)->errors, (*found)->error_count, call);
}

/* A handle lives for ever and names its device by UUID: it stays valid, and honest, across every change of the file. */
static Handle *handle_of(const char *uuid) {
    for (int i = 0; i < handle_count; i++)
        if (!strcmp(handles[i]->uuid, uuid)) return handles[i];
    if (handle_count == 4 * MAX_DEVICES) return NULL;
    Handle *made = calloc(1, sizeof *made);
    snprintf(made->uuid, sizeof made->uuid, "%s", uuid);
    return handles[handle_count++] = made;
}

static int text(char *out, unsigned size, const char *value) {
    if (size < strlen(value) + 1) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

#define ENTER int held __attribute__((cleanup(leave), unused)) = enter()
#define BOX ENTER; do { int code_ = box_failure(__func__); if (code_) return code_; } while (0)
#define DEVICE(handle) ENTER; Device *d; do { int code_ = find(handle, __func__, &d); if (code_) return code_; } while (0)
#define WHOLE(handle) DEVICE(handle); do { if (d->parent >= 0) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER;
    if (!file_present) return DRIVER_NOT_LOADED;
    int code = failure(errors, error_count, "nvmlInit");
    if (code) return code;
    if (initialized++) return SUCCESS;
    listed_count = 0;
    initialized_in = generation;
    for (int i = 0; i < device_count; i++)
        if (devices[i].parent < 0) strcpy(listed[listed_count++], devices[i].uuid);
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    ENTER;
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char words[48];
    snprintf(words, sizeof words, code == UNKNOWN ? "Unknown Error" : "error %d of the fake driver", code);
    return words;
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) { BOX; return text(out, size, driver); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { BOX; *out = cuda_version; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { BOX; *out = (unsigned)listed_count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **out) {
    BOX;
    if (index >= (unsigned)listed_count) return INVALID_ARGUMENT;
    Device *d = by_uuid(listed[index]);
    if (!d) return GPU_IS_LOST;
    int code = failure(d->errors, d->error_count, __func__);
    if (code) return code;
    *out = handle_of(d->uuid);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Handle **out) {
    BOX;
    Device *d = by_uuid(uuid);
    if (!d) return NOT_FOUND;
    int code = failure(d->errors, d->error_count, __func__);
    if (code) return code;
    *out = handle_of(d->uuid);
    return SUCCESS;
}

int nvmlDeviceGetUUID(Handle *h, char *out, unsigned size) { DEVICE(h); return text(out, size, d->uuid); }
int nvmlDeviceGetName(Handle *h, char *out, unsigned size) { DEVICE(h); return text(out, size, d->name); }
int nvmlDeviceGetMinorNumber(Handle *h, unsigned *out) { WHOLE(h); *out = d->minor; return SUCCESS; }

int nvmlDeviceGetIndex(Handle *h, unsigned *out) {
    WHOLE(h);
    for (int i = 0; i < listed_count; i++)
        if (!strcmp(listed[i], d->uuid)) { *out = (unsigned)i; return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetPciInfo_v3(Handle *h, PciInfo *out) {
    WHOLE(h);
    memset(out, 0, sizeof *out);
    sscanf(d->bus, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff, out->device & 0xff);
    return text(out->bus_id, sizeof out->bus_id, d->bus);
}

int nvmlDeviceGetMemoryInfo(Handle *h, Memory *out) {
    DEVICE(h);
    *out = (Memory){d->total, d->total - d->used - d->reserved, d->used + d->reserved};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Handle *h, MemoryV2 *out) {
    DEVICE(h);
    if (out->version != (sizeof(MemoryV2) | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    *out = (MemoryV2){out->version, d->total, d->reserved, d->total - d->used - d->reserved, d->used};
    return SUCCESS;
}

/* A MIG parent lists what runs on its instances, each with its instance ids, as the driver does. */
static int list(Device *d, char kind, unsigned *count, ProcessInfo *out) {
    unsigned found = 0, room = out ? *count : 0;
    for (Device *each = devices; each < devices + device_count; each++) {
        if (each != d && (each->parent < 0 || &devices[each->parent] != d)) continue;
        for (Process *p = each->processes; p < each->processes + each->process_count; p++) {
            if (p->kind != kind) continue;
            if (found < room)
                out[found] = (ProcessInfo){p->pid, p->used, (unsigned)each->gpu_instance, (unsigned)each->compute_instance};
            found++;
        }
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Handle *h, unsigned *n, ProcessInfo *out) { DEVICE(h); return list(d, 'c', n, out); }
int nvmlDeviceGetComputeRunningProcesses_v2(Handle *h, unsigned *n, ProcessInfo *out) { DEVICE(h); return list(d, 'c', n, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle *h, unsigned *n, ProcessInfo *out) { DEVICE(h); return list(d, 'g', n, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(Handle *h, unsigned *n, ProcessInfo *out) { DEVICE(h); return list(d, 'g', n, out); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle *h, unsigned *n, ProcessInfo *out) { DEVICE(h); return list(d, 'm', n, out); }

int nvmlDeviceGetUtilizationRates(Handle *h, Utilization *out) {
    WHOLE(h);
    *out = (Utilization){d->utilization, d->memory_utilization};
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Handle *h, int sensor, unsigned *out) { (void)sensor; WHOLE(h); *out = d->temperature; return SUCCESS; }
int nvmlDeviceGetPowerUsage(Handle *h, unsigned *out) { WHOLE(h); *out = d->power; return SUCCESS; }
int nvmlDeviceGetPowerManagementLimit(Handle *h, unsigned *out) { WHOLE(h); *out = d->power_limit; return SUCCESS; }
int nvmlDeviceGetEnforcedPowerLimit(Handle *h, unsigned *out) { WHOLE(h); *out = d->power_limit; return SUCCESS; }
int nvmlDeviceGetTotalEnergyConsumption(Handle *h, u64 *out) { WHOLE(h); *out = d->energy; return SUCCESS; }

int nvmlDeviceGetTotalEccErrors(Handle *h, int type, int counter, u64 *out) {
    (void)counter;
    WHOLE(h);
    *out = type == 1 ? d->ecc : 0;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(Handle *h, int *major, int *minor) {
    DEVICE(h);
    *major = (int)d->major_cc;
    *minor = (int)d->minor_cc;
    return SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(Handle *h, unsigned size, unsigned long *set, unsigned scope) {
    (void)scope;
    WHOLE(h);
    memset(set, 0, size * sizeof *set);
    if (d->numa < 0) return NOT_SUPPORTED;
    if ((unsigned)d->numa / 64 < size) set[d->numa / 64] = 1ul << d->numa % 64;
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(Handle *one, Handle *other, int *level) {
    WHOLE(one);
    Device *second;
    int code = find(other, __func__, &second);
    if (code) return code;
    *level = d == second ? 0 : d->numa == second->numa ? 30 : 50;
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(Handle *one, Handle *other, int what, int *status) {
    WHOLE(one);
    Device *second;
    int code = find(other, __func__, &second);
    if (code) return code;
    *status = what == P2P_NVLINK && d->nvlink >= 0 && d->nvlink == second->nvlink ? P2P_OK : P2P_NOT_SUPPORTED;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Handle *h, unsigned *current, unsigned *pending) {
    WHOLE(h);
    *current = *pending = d->mig_mode;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Handle *h, unsigned *out) { WHOLE(h); *out = MAX_MIG; return SUCCESS; }
int nvmlDeviceIsMigDeviceHandle(Handle *h, unsigned *out) { DEVICE(h); *out = d->parent >= 0; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(Handle *h, unsigned index, Handle **out) {
    WHOLE(h);
    for (Device *each = devices; each < devices + device_count; each++)
        if (each->parent >= 0 && &devices[each->parent] == d && !index--) { *out = handle_of(each->uuid); return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Handle *h, Handle **out) {
    DEVICE(h);
    if (d->parent < 0) return INVALID_ARGUMENT;
    *out = handle_of(devices[d->parent].uuid);
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(Handle *h, unsigned *out) { DEVICE(h); *out = (unsigned)d->gpu_instance; return d->parent < 0 ? NOT_SUPPORTED : SUCCESS; }
int nvmlDeviceGetComputeInstanceId(Handle *h, unsigned *out) { DEVICE(h); *out = (unsigned)d->compute_instance; return d->parent < 0 ? NOT_SUPPORTED : SUCCESS; }

int nvmlEventSetCreate(EventSet **out) {
    BOX;
    *out = calloc(1, sizeof **out);
    return *out ? SUCCESS : UNKNOWN;
}

int nvmlEventSetFree(EventSet *set) { free(set); return SUCCESS; }
int nvmlDeviceGetSupportedEventTypes(Handle *h, u64 *out) { WHOLE(h); *out = XID_EVENT; return SUCCESS; }

int nvmlDeviceRegisterEvents(Handle *h, u64 types, EventSet *set) {
    WHOLE(h);
    if (types & ~(u64)XID_EVENT) return NOT_SUPPORTED;
    if (set->count == MAX_DEVICES) return INSUFFICIENT_SIZE;
    set->handles[set->count] = h;
    set->seen[set->count++] = d->xid_count;
    return SUCCESS;
}

static int next_event(EventSet *set, EventData *out) {
    BOX;
    for (int i = 0; i < set->count; i++) {
        Device *d = by_uuid(set->handles[i]->uuid);
        if (!d || d->xid_count <= set->seen[i]) continue;
        *out = (EventData){set->handles[i], XID_EVENT, d->xids[set->seen[i]++], ~0u, ~0u};
        return SUCCESS;
    }
    return TIMEOUT;
}

int nvmlEventSetWait_v2(EventSet *set, EventData *out, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += 5) {
        int code = next_event(set, out);
        if (code != TIMEOUT || waited >= timeout_ms) return code;
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
}
