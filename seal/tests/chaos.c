/* A PKCS#11 module in front of a real one, for tests: it can fail, hang, delay or cut off any function.
 *
 * CHAOS_MODULE  path of the real module
 * CHAOS_CTL     file with the order in force, read at each call:
 *                 ""                      pass everything on
 *                 "rv 0x30 C_Encrypt 2"   the next 2 calls of C_Encrypt answer 0x30 (no count: all calls)
 *                 "hang C_Encrypt"        calls do not return until the order changes
 *                 "delay 50 C_Encrypt"    calls take 50 ms longer
 *                 "sessions 3"            the token has 3 sessions, says so and refuses more
 *                 "cut"                   every call answers CKR_DEVICE_ERROR; afterwards old sessions stay dead
 * CHAOS_LOG     file that gets one line per call: the function's name
 *
 * All parameters of PKCS#11 2.40 functions are integers or pointers of machine words at most, so one wrapper with eight
 * words fits every function on the ABIs this is used on (x86-64 and aarch64 System V).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long word;
typedef word (*function)(word, word, word, word, word, word, word, word);

#define FUNCTIONS(X) \
  X(C_Initialize) X(C_Finalize) X(C_GetInfo) X(C_GetFunctionList) X(C_GetSlotList) X(C_GetSlotInfo) X(C_GetTokenInfo) \
  X(C_GetMechanismList) X(C_GetMechanismInfo) X(C_InitToken) X(C_InitPIN) X(C_SetPIN) X(C_OpenSession) \
  X(C_CloseSession) X(C_CloseAllSessions) X(C_GetSessionInfo) X(C_GetOperationState) X(C_SetOperationState) X(C_Login) \
  X(C_Logout) X(C_CreateObject) X(C_CopyObject) X(C_DestroyObject) X(C_GetObjectSize) X(C_GetAttributeValue) \
  X(C_SetAttributeValue) X(C_FindObjectsInit) X(C_FindObjects) X(C_FindObjectsFinal) X(C_EncryptInit) X(C_Encrypt) \
  X(C_EncryptUpdate) X(C_EncryptFinal) X(C_DecryptInit) X(C_Decrypt) X(C_DecryptUpdate) X(C_DecryptFinal) \
  X(C_DigestInit) X(C_Digest) X(C_DigestUpdate) X(C_DigestKey) X(C_DigestFinal) X(C_SignInit) X(C_Sign) \
  X(C_SignUpdate) X(C_SignFinal) X(C_SignRecoverInit) X(C_SignRecover) X(C_VerifyInit) X(C_Verify) X(C_VerifyUpdate) \
  X(C_VerifyFinal) X(C_VerifyRecoverInit) X(C_VerifyRecover) X(C_DigestEncryptUpdate) X(C_DecryptDigestUpdate) \
  X(C_SignEncryptUpdate) X(C_DecryptVerifyUpdate) X(C_GenerateKey) X(C_GenerateKeyPair) X(C_WrapKey) X(C_UnwrapKey) \
  X(C_DeriveKey) X(C_SeedRandom) X(C_GenerateRandom) X(C_GetFunctionStatus) X(C_CancelFunction) X(C_WaitForSlotEvent)

enum {
#define X(name) AT_##name,
  FUNCTIONS(X)
#undef X
  COUNT
};

static const char *const names[] = {
#define X(name) #name,
    FUNCTIONS(X)
#undef X
};

struct list {
  unsigned char version[2];
  function entries[COUNT];
};

static struct list *real;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char last_order[256];
static long calls_left;
static int dead;
static long open_sessions;

static void read_order(char *order, size_t size) {
  const char *path = getenv("CHAOS_CTL");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  ssize_t length = file < 0 ? 0 : read(file, order, size - 1);
  if (file >= 0) close(file);
  order[length > 0 ? length : 0] = 0;
}

static void record(int at) {
  const char *path = getenv("CHAOS_LOG");
  int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
  char line[64];
  if (file < 0) return;
  int length = snprintf(line, sizeof line, "%s\n", names[at]);
  if (write(file, line, length) < 0) abort();
  close(file);
}

static long session_limit(void);

/* Whether the call is answered here; `answer` is then what with. */
static int disturb(int at, word *answer) {
  char order[256], name[64] = "";
  unsigned long code = 0;
  long count = -1;
  read_order(order, sizeof order);
  pthread_mutex_lock(&lock);
  if (strcmp(order, last_order)) {
    strcpy(last_order, order);
    calls_left = sscanf(order, "rv %li %63s %ld", (long *)&code, name, &count) == 3 ? count : -1;
  }
  pthread_mutex_unlock(&lock);
  if (!strncmp(order, "cut", 3) || (dead && at != AT_C_Initialize && at != AT_C_Finalize)) {
    dead = 1;
    *answer = 0x30;
    return at != AT_C_Finalize;
  }
  if (at == AT_C_OpenSession && session_limit() && open_sessions >= session_limit()) {
    *answer = 0xB1;
    return 1;
  }
  if (sscanf(order, "rv %li %63s", (long *)&code, name) == 2 && !strcmp(name, names[at])) {
    pthread_mutex_lock(&lock);
    int now = calls_left != 0;
    if (calls_left > 0) calls_left--;
    pthread_mutex_unlock(&lock);
    *answer = code;
    return now;
  }
  if (sscanf(order, "delay %lu %63s", &code, name) == 2 && !strcmp(name, names[at])) usleep(code * 1000);
  while (sscanf(order, "hang %63s", name) == 1 && !strcmp(name, names[at])) {
    usleep(5000);
    read_order(order, sizeof order);
  }
  return 0;
}

/* The limit on sessions in force, 0 for none. */
static long session_limit(void) {
  char order[256];
  long limit = 0;
  read_order(order, sizeof order);
  return sscanf(order, "sessions %ld", &limit) == 1 ? limit : 0;
}

/* After a call that succeeded; `b` is its second parameter. */
static void account(int at, word b) {
  long limit = session_limit();
  if (at == AT_C_Initialize) dead = 0;
  pthread_mutex_lock(&lock);
  if (at == AT_C_Initialize) open_sessions = 0;
  if (at == AT_C_OpenSession) open_sessions++;
  if (at == AT_C_CloseSession) open_sessions--;
  pthread_mutex_unlock(&lock);
  /* ulMaxSessionCount lies behind four texts (96 bytes) and the flags. */
  if (at == AT_C_GetTokenInfo && limit) *(word *)(b + 96 + sizeof(word)) = limit;
}

#define X(name)                                                                                          \
  static word wrapped_##name(word a, word b, word c, word d, word e, word f, word g, word h) {            \
    word answer;                                                                                          \
    record(AT_##name);                                                                                    \
    if (disturb(AT_##name, &answer)) return answer;                                                       \
    answer = real->entries[AT_##name](a, b, c, d, e, f, g, h);                                            \
    if (answer == 0) account(AT_##name, b);                                                               \
    return answer;                                                                                        \
  }
FUNCTIONS(X)
#undef X

static struct list ours = {{2, 40},
                           {
#define X(name) wrapped_##name,
                               FUNCTIONS(X)
#undef X
                           }};

word C_GetFunctionList(struct list **out) {
  if (!real) {
    const char *path = getenv("CHAOS_MODULE");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    word (*get)(struct list **) = library ? (word(*)(struct list **))dlsym(library, "C_GetFunctionList") : NULL;
    if (!get || get(&real)) return 5;
  }
  *out = &ours;
  return 0;
}
