DROP TABLE reservation_history;
